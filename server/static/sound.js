// Everything that touches the microphone and sound files. Knows Web Audio; nothing of the service.

const MAX_RATE = 48000; // the highest sample rate that the service takes live
const SEND_AHEAD_S = 0.2; // a file is sent at most this far ahead of its own pace
const CHUNK_S = 0.1;

function microphone() {
  if (!navigator.mediaDevices) {
    throw new Error("the microphone needs a secure page (https, or localhost)");
  }
  const audio = { echoCancellation: true, noiseSuppression: true, channelCount: 1 };
  return navigator.mediaDevices.getUserMedia({ audio }).catch((error) => {
    const why = error.name === "NotAllowedError" ? "the browser was not allowed to use it" : error.message;
    throw new Error(`no microphone: ${why}`);
  });
}

/** Records a clip; `stop()` gives it as a file. */
export class Recorder {
  static async start() {
    const stream = await microphone();
    return new Recorder(stream);
  }

  #stream;
  #recorder;
  #parts = [];

  constructor(stream) {
    this.#stream = stream;
    this.#recorder = new MediaRecorder(stream);
    this.#recorder.addEventListener("dataavailable", (event) => this.#parts.push(event.data));
    this.#recorder.start();
  }

  async stop() {
    const stopped = new Promise((resolve) =>
      this.#recorder.addEventListener("stop", resolve, { once: true }),
    );
    this.#recorder.stop();
    await stopped;
    this.#stream.getTracks().forEach((track) => track.stop());
    const type = this.#recorder.mimeType;
    return new File(this.#parts, type.includes("mp4") ? "recording.m4a" : "recording.webm", { type });
  }
}

/** Floats in -1..1 as s16le. */
function toPcm(floats) {
  const pcm = new DataView(new ArrayBuffer(floats.length * 2));
  floats.forEach((value, i) => {
    pcm.setInt16(i * 2, Math.round(Math.max(-1, Math.min(1, value)) * 32767), true);
  });
  return pcm.buffer;
}

/** PCM for a live session: from the microphone while it is on, and from files when told. */
export class LiveSound {
  #context;
  #onPcm;
  #stream = null;
  #saying = null;

  /** `onPcm(ArrayBuffer)` gets s16le mono at `rate`. */
  constructor(onPcm) {
    this.#context = new AudioContext();
    if (this.#context.sampleRate > MAX_RATE) {
      this.#context.close();
      this.#context = new AudioContext({ sampleRate: MAX_RATE });
    }
    this.#onPcm = onPcm;
  }

  get rate() {
    return this.#context.sampleRate;
  }

  get listening() {
    return this.#stream !== null;
  }

  async listen() {
    const stream = await microphone();
    await this.#context.resume();
    await this.#context.audioWorklet.addModule("/static/pcm-worklet.js");
    const node = new AudioWorkletNode(this.#context, "pcm", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => {
      if (this.#stream === stream) this.#onPcm(toPcm(data));
    };
    this.#stream = stream;
    this.#context.createMediaStreamSource(stream).connect(node);
  }

  deafen() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
  }

  /** Sends a sound file at its own pace; resolves when all of it is sent, or it was hushed. */
  async say(file) {
    this.hush();
    const saying = {};
    this.#saying = saying;
    const sound = await this.#context.decodeAudioData(await file.arrayBuffer()).catch(() => {
      throw new Error(`${file.name}: the browser cannot decode this sound`);
    });
    const tracks = Array.from({ length: sound.numberOfChannels }, (_, i) => sound.getChannelData(i));
    const mono = Float32Array.from(
      { length: sound.length },
      (_, i) => tracks.reduce((sum, track) => sum + track[i], 0) / tracks.length,
    );
    const hop = Math.round(CHUNK_S * this.rate);
    const began = performance.now();
    for (let at = 0; at < mono.length && this.#saying === saying; at += hop) {
      this.#onPcm(toPcm(mono.subarray(at, at + hop)));
      const early_s = (at + hop) / this.rate - (performance.now() - began) / 1000 - SEND_AHEAD_S;
      if (early_s > 0) await new Promise((resolve) => setTimeout(resolve, early_s * 1000));
    }
    if (this.#saying === saying) this.#saying = null;
  }

  /** Stops what `say` is sending. */
  hush() {
    this.#saying = null;
  }

  close() {
    this.hush();
    this.deafen();
    this.#context.close();
  }
}
