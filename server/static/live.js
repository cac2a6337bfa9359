// A live session over the WebSocket `/stream`.

import { Problem, subprotocols } from "./api.js";

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
  #ready = false;

  /** `options` are those of an animation; `seed` is a string of digits, and may be empty. */
  constructor({ avatarId, sampleRate, options, seed, idle, on }) {
    this.#on = on;
    const address = new URL("/stream", location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    this.#socket = new WebSocket(address, subprotocols());
    this.#socket.binaryType = "arraybuffer";
    const start = { type: "start", avatar_id: avatarId, sample_rate: sampleRate, ...options, idle };
    // A seed may exceed the integers that a JavaScript number can represent.
    const text = JSON.stringify(start).slice(0, -1) + (seed ? `,"seed":${seed}}` : "}");
    this.#socket.addEventListener("open", () => this.#socket.send(text));
    this.#socket.addEventListener("message", ({ data }) => this.#receive(data));
    this.#socket.addEventListener("close", (event) => this.#close(event));
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
    else this.#socket.close();
  }

  #send(data) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(data);
  }

  #receive(data) {
    if (data instanceof ArrayBuffer) return this.#media(new Uint8Array(data));
    const message = JSON.parse(data);
    if (message.type === "ready") {
      this.#ready = true;
      this.#on.ready(message, /"seed"\s*:\s*(\d+)/.exec(data)?.[1] ?? "");
    } else if (message.type === "fragment") this.#fragment = message;
    else if (message.type === "motion") this.#on.motion(message);
    else if (message.type === "interrupted") this.#on.interrupted(message);
    else if (message.type === "done") this.#on.done(message);
    else if (message.type === "error") this.#problem = new Problem(message.code, message.detail);
  }

  #media(bytes) {
    if (this.#fragment) this.#on.fragment(this.#fragment, bytes);
    else this.#on.init(bytes);
    this.#fragment = null;
  }

  #close({ code, reason }) {
    if (!this.#problem && code !== 1000 && code !== 1005) {
      const why = reason || (this.#ready ? `the connection closed with ${code}` : "the service does not respond");
      this.#problem = new Problem("broken", `the live session ended: ${why}`);
    }
    this.#on.closed(this.#problem);
  }
}
