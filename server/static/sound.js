// Microphone and audio files, through Web Audio.

const MAX_RATE = 48000; // the highest sample rate that live sessions accept
const SEND_AHEAD_S = 0.2; // how far ahead of real time a file is sent
const CHUNK_S = 0.1;

function microphone() {
  if (!navigator.mediaDevices) {
    throw new Error("the microphone needs a secure page (https, or localhost)");
  }
  const audio = { echoCancellation: true, noiseSuppression: true, channelCount: 1 };
  return navigator.mediaDevices.getUserMedia({ audio }).catch((error) => {
    const why = error.name === "NotAllowedError" ? "the browser denied access" : error.message;
    throw new Error(`no microphone: ${why}`);
  });
}

/** Records a clip; `stop()` resolves to it as a file. */
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

/** Converts samples in -1..1 to s16le. */
function toPcm(floats) {
  const pcm = new DataView(new ArrayBuffer(floats.length * 2));
  floats.forEach((value, i) => {
    pcm.setInt16(i * 2, Math.round(Math.max(-1, Math.min(1, value)) * 32767), true);
  });
  return pcm.buffer;
}

/** The sound of a live session, from the microphone and from files: as PCM, or as a track. */
export class LiveAudio {
  #context;
  #onPcm;
  #stream = null;
  #playback = null;
  #destination = null;

  /** `onPcm(ArrayBuffer)` receives s16le mono at `rate`. */
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

  /** From now on the sound goes to this track, instead of `onPcm`. */
  get track() {
    this.#context.resume();
    this.#destination ??= this.#context.createMediaStreamDestination();
    return this.#destination.stream.getAudioTracks()[0];
  }

  /** From now on the sound goes to `onPcm` again. */
  dropTrack() {
    this.#destination = null;
  }

  get microphoneOn() {
    return this.#stream !== null;
  }

  async startMicrophone() {
    const stream = await microphone();
    await this.#context.resume();
    if (this.#destination) {
      this.#stream = stream;
      this.#context.createMediaStreamSource(stream).connect(this.#destination);
      return;
    }
    await this.#context.audioWorklet.addModule("/static/pcm-worklet.js");
    const node = new AudioWorkletNode(this.#context, "pcm", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => {
      if (this.#stream === stream) this.#onPcm(toPcm(data));
    };
    this.#stream = stream;
    this.#context.createMediaStreamSource(stream).connect(node);
  }

  stopMicrophone() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
  }

  /** Sends an audio file in real time; resolves when it is sent or `stopFile` was called. */
  async sendFile(file) {
    this.stopFile();
    const playback = {};
    this.#playback = playback;
    const sound = await this.#context.decodeAudioData(await file.arrayBuffer()).catch(() => {
      throw new Error(`${file.name}: the browser cannot decode this audio`);
    });
    if (this.#playback !== playback) return;
    if (this.#destination) return this.#play(sound, playback);
    const tracks = Array.from({ length: sound.numberOfChannels }, (_, i) => sound.getChannelData(i));
    const mono = Float32Array.from(
      { length: sound.length },
      (_, i) => tracks.reduce((sum, track) => sum + track[i], 0) / tracks.length,
    );
    const hop = Math.round(CHUNK_S * this.rate);
    const began = performance.now();
    for (let at = 0; at < mono.length && this.#playback === playback; at += hop) {
      this.#onPcm(toPcm(mono.subarray(at, at + hop)));
      const early_s = (at + hop) / this.rate - (performance.now() - began) / 1000 - SEND_AHEAD_S;
      if (early_s > 0) await new Promise((resolve) => setTimeout(resolve, early_s * 1000));
    }
    if (this.#playback === playback) this.#playback = null;
  }

  #play(sound, playback) {
    playback.source = new AudioBufferSourceNode(this.#context, { buffer: sound });
    playback.source.connect(this.#destination);
    playback.source.start();
    return new Promise((resolve) => playback.source.addEventListener("ended", resolve));
  }

  /** Stops `sendFile`. */
  stopFile() {
    this.#playback?.source?.stop();
    this.#playback = null;
  }

  close() {
    this.stopFile();
    this.stopMicrophone();
    this.#context.close();
  }
}
