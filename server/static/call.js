// A live session over WebRTC, `POST /webrtc`, with the interface of `LiveSession`.

import { beginCall, endCall, Problem } from "./api.js";

const CONNECT_MS = 8000;
const GATHER_MS = 2000; // candidates that take longer, such as a silent STUN server's, are left out

/** `on` is that of `LiveSession`, without bytes. A call that cannot connect ends as `no_webrtc`. */
export class LiveCall {
  #pc = new RTCPeerConnection();
  #channel = this.#pc.createDataChannel("control");
  #stream = new MediaStream();
  #on;
  #location = null;
  #problem = null;
  #ready = false;
  #closed = false;

  /** `track` is what the avatar is to say; the rest is as for `LiveSession`. */
  constructor({ avatarId, track, options, seed, on }) {
    this.#on = on;
    this.#pc.addTrack(track);
    this.#pc.addTransceiver("video", { direction: "recvonly" });
    this.#pc.addEventListener("track", (event) => this.#stream.addTrack(event.track));
    this.#pc.addEventListener("connectionstatechange", () => {
      if (["failed", "closed"].includes(this.#pc.connectionState)) this.#close();
    });
    this.#channel.addEventListener("message", ({ data }) => this.#receive(data));
    this.#channel.addEventListener("close", () => this.#close());
    this.#begin(avatarId, seed ? { ...options, seed } : options).catch((error) => {
      this.#problem = error;
      this.#close();
    });
    setTimeout(() => this.#ready || this.#close(), CONNECT_MS);
  }

  /** Shows the avatar's tracks on `video`; a player like `Player`. */
  play(video) {
    video.srcObject = this.#stream;
    video.play().catch(() => {
      video.controls = true;
    });
    const close = () => {
      if (video.srcObject === this.#stream) video.srcObject = null;
    };
    return { ahead: 0, skipTo() {}, close };
  }

  interrupt() {
    this.#send({ type: "interrupt" });
  }

  update(options) {
    this.#send({ type: "update", ...options });
  }

  state(state) {
    this.#send({ type: "state", state });
  }

  end() {
    if (this.#ready) this.#send({ type: "end" });
    else this.#close();
  }

  async #begin(avatarId, options) {
    await this.#pc.setLocalDescription();
    await this.#gathered();
    try {
      const { answer, location } = await beginCall(avatarId, options, this.#pc.localDescription.sdp);
      this.#location = location;
      if (this.#closed) endCall(location);
      else await this.#pc.setRemoteDescription({ type: "answer", sdp: answer });
    } catch (error) {
      const missing = error.code === "not_found" && error.message.startsWith("WebRTC");
      throw missing ? new Problem("no_webrtc", error.message) : error;
    }
  }

  #gathered() {
    return new Promise((resolve) => {
      const look = () => this.#pc.iceGatheringState === "complete" && resolve();
      this.#pc.addEventListener("icegatheringstatechange", look);
      setTimeout(resolve, GATHER_MS);
      look();
    });
  }

  #send(message) {
    if (this.#channel.readyState === "open") this.#channel.send(JSON.stringify(message));
  }

  #receive(data) {
    const message = JSON.parse(data);
    if (message.type === "ready") {
      this.#ready = true;
      this.#on.ready(message, /"seed"\s*:\s*(\d+)/.exec(data)?.[1] ?? "");
    } else if (message.type === "fragment") this.#on.fragment(message, null);
    else if (message.type === "interrupted") this.#on.interrupted(message);
    else if (message.type === "done") {
      this.#on.done(message);
      this.#close(true);
    } else if (message.type === "error") this.#problem = new Problem(message.code, message.detail);
  }

  #close(done = false) {
    if (this.#closed) return;
    this.#closed = true;
    this.#pc.close();
    if (this.#location && !done) endCall(this.#location);
    if (!done) {
      this.#problem ??= this.#ready
        ? new Problem("broken", "the live session ended: the connection was lost")
        : new Problem("no_webrtc", "WebRTC does not connect here");
    }
    this.#on.closed(this.#problem);
  }
}
