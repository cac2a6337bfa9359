// Posts the microphone's samples to the page in blocks of about 20 ms.

const BLOCK_S = 0.02;

class Pcm extends AudioWorkletProcessor {
  #block = new Float32Array(Math.round(BLOCK_S * sampleRate));
  #filled = 0;

  process([[channel]]) {
    if (channel) channel.forEach((value) => this.#add(value));
    return true;
  }

  #add(value) {
    this.#block[this.#filled++] = value;
    if (this.#filled < this.#block.length) return;
    this.port.postMessage(this.#block.slice());
    this.#filled = 0;
  }
}

registerProcessor("pcm", Pcm);
