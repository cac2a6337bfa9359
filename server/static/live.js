// A live session over the WebSocket `/stream`.

import { Problem, subprotocols } from "./api.js";

const RESUME_MS = 10_000; // how long the service keeps a session without a connection
const RETRY_MS = 300;
const TAIL_BYTES = 8 << 20; // more than buffers on the way hold
const CUT_OFF = [1001, 1006, 1012, 1014]; // closes that neither side asked for

/**
 * `on` handles ready(message, seed), init(bytes), fragment(message, bytes) or, with the option
 * `output: "motion"`, motion(message) instead of both, interrupted(message),
 * done(message) and closed(problem | null), which is called once, last.
 */
export class LiveSession {
  #socket;
  #on;
  #fragment = null;
  #problem = null;
  #ready = null;
  #begun = false;
  #done = false;
  #leaving = false;
  #resumed = true; // nothing is to be sent again
  #lostAt = 0; // when the connection was lost that is being replaced
  #next = 0;
  #interrupted = 0;
  #sent = 0;
  #tail = [];
  #tailBytes = 0;

  /** `options` are those of an animation; `seed` is a string of digits, and may be empty. */
  constructor({ avatarId, sampleRate, options, seed, idle, on }) {
    this.#on = on;
    const start = { type: "start", avatar_id: avatarId, sample_rate: sampleRate, ...options, idle };
    // A seed may exceed the integers that a JavaScript number can represent.
    this.#connect(JSON.stringify(start).slice(0, -1) + (seed ? `,"seed":${seed}}` : "}"));
  }

  #connect(first) {
    const address = new URL("/stream", location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address, subprotocols());
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.addEventListener("open", () => socket.send(first));
    socket.addEventListener("message", ({ data }) => this.#receive(data));
    socket.addEventListener("close", (event) => this.#close(event));
  }

  #resume() {
    const { session_id, token } = this.#ready;
    this.#fragment = null;
    this.#resumed = false;
    const counts = { next_index: this.#next, interrupted: this.#interrupted };
    this.#connect(JSON.stringify({ type: "resume", session_id, token, ...counts }));
  }

  pcm(buffer) {
    if (this.#ready) this.#send(buffer);
  }

  interrupt() {
    this.#send(JSON.stringify({ type: "interrupt" }));
  }

  update(options) {
    this.#send(JSON.stringify({ type: "update", ...options }));
  }

  /** How it behaves while it does not speak: `idle`, `listening` or `thinking`. */
  state(state) {
    this.#send(JSON.stringify({ type: "state", state }));
  }

  /** Ends the session once all audio sent so far has been spoken. */
  end() {
    if (this.#ready) this.#send(JSON.stringify({ type: "end" }));
    else this.#leave();
  }

  #leave() {
    this.#leaving = true;
    this.#socket.close();
  }

  #send(data) {
    if (!this.#ready) return;
    this.#sent += 1;
    this.#tail.push(data);
    this.#tailBytes += size(data);
    while (this.#tailBytes > TAIL_BYTES) this.#tailBytes -= size(this.#tail.shift());
    if (this.#resumed && this.#socket.readyState === WebSocket.OPEN) this.#socket.send(data);
  }

  #sendAgain(count) {
    if (count > this.#tail.length) return this.#leave();
    this.#resumed = true;
    this.#lostAt = 0;
    for (const data of count > 0 ? this.#tail.slice(-count) : []) this.#socket.send(data);
  }

  #receive(data) {
    if (data instanceof ArrayBuffer) return this.#media(new Uint8Array(data));
    const message = JSON.parse(data);
    if (message.type === "ready") {
      this.#ready = message;
      this.#on.ready(message, /"seed"\s*:\s*(\d+)/.exec(data)?.[1] ?? "");
    } else if (message.type === "resumed") this.#sendAgain(this.#sent - message.messages);
    else if (message.type === "fragment") this.#fragment = message;
    else if (message.type === "motion") {
      this.#next = message.index + 1;
      this.#on.motion(message);
    } else if (message.type === "interrupted") {
      this.#interrupted += 1;
      this.#on.interrupted(message);
    } else if (message.type === "done") {
      this.#done = true;
      this.#on.done(message);
    } else if (message.type === "error") this.#problem = new Problem(message.code, message.detail);
  }

  #media(bytes) {
    if (this.#fragment) {
      this.#next = this.#fragment.index + 1;
      this.#on.fragment(this.#fragment, bytes);
    } else if (!this.#begun) {
      this.#begun = true;
      this.#on.init(bytes);
    }
    this.#fragment = null;
  }

  #close({ code, reason }) {
    const unwanted = CUT_OFF.includes(code) && !this.#leaving && !this.#done && !this.#problem;
    if (unwanted && this.#ready?.token) {
      this.#lostAt ||= performance.now();
      if (performance.now() - this.#lostAt < RESUME_MS) {
        setTimeout(() => this.#resume(), this.#resumed ? 0 : RETRY_MS);
        return;
      }
    }
    if (!this.#problem && !this.#done && code !== 1000 && code !== 1005) {
      const why = reason || (this.#ready ? `the connection closed with ${code}` : "the service does not respond");
      this.#problem = new Problem("broken", `the live session ended: ${why}`);
    }
    this.#on.closed(this.#problem);
  }
}

function size(data) {
  return typeof data === "string" ? data.length : data.byteLength;
}
