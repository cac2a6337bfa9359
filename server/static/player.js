// Plays a growing video. Knows MediaSource and the video element; nothing of where bytes come from.

const KEEP_S = 30; // seconds behind the playhead that a long live stream keeps
const LIVE_FAR_S = 1.5; // farther behind the edge than this: jump
const LIVE_NEAR_S = 0.6; // farther than this: play a little faster until caught up
const LIVE_START_S = 0.25; // where to land after a jump

const Source = globalThis.ManagedMediaSource ?? globalThis.MediaSource;

export const canPlay = Source !== undefined;

/** One stream on one video element. `live` keeps playback near the newest picture. */
export class Player {
  #video;
  #live;
  #source = new Source();
  #url;
  #buffer = null;
  #queue = [];
  #ended = false;
  #closed = false;
  #open;
  #onError;

  constructor(video, { live, onError }) {
    this.#video = video;
    this.#live = live;
    this.#onError = onError;
    // Safari's ManagedMediaSource opens only where no second screen may take over.
    video.disableRemotePlayback = true;
    this.#open = new Promise((resolve) =>
      this.#source.addEventListener("sourceopen", resolve, { once: true }),
    );
    this.#url = URL.createObjectURL(this.#source);
    video.src = this.#url;
    video.playbackRate = 1;
  }

  /** `mime` is known with the init segment; appended bytes wait until then. */
  async start(mime) {
    await this.#open;
    if (this.#closed) return;
    if (!Source.isTypeSupported(mime)) throw new Error(`this browser cannot play ${mime}`);
    this.#buffer = this.#source.addSourceBuffer(mime);
    this.#buffer.addEventListener("updateend", () => this.#pump());
    this.#pump();
    // Refused only where the browser wants a click first: then its own controls are there for it.
    this.#video.play().catch(() => {
      this.#video.controls = true;
    });
  }

  push(bytes) {
    this.#queue.push(bytes);
    this.#pump();
  }

  /** No more bytes will come. */
  finish() {
    this.#ended = true;
    this.#live = false;
    this.#video.playbackRate = 1;
    this.#pump();
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#queue = [];
    URL.revokeObjectURL(this.#url);
  }

  /** Seconds of video received beyond the picture on show. */
  get ahead() {
    const end = this.#end();
    return end === null ? 0 : Math.max(0, end - this.#video.currentTime);
  }

  /** Leaves out what was received before `time`, seconds, and is not on show yet. */
  skipTo(time) {
    const target = Math.min(time, (this.#end() ?? 0) - 0.1);
    if (target > this.#video.currentTime) this.#video.currentTime = target;
  }

  #end() {
    const ranges = this.#buffer && this.#source.readyState !== "closed" && this.#buffer.buffered;
    return ranges && ranges.length ? ranges.end(ranges.length - 1) : null;
  }

  #pump() {
    if (this.#closed || !this.#buffer || this.#buffer.updating) return;
    if (this.#source.readyState !== "open") return;
    if (this.#live) this.#stayLive();
    if (this.#queue.length) this.#append();
    else if (this.#ended) this.#source.endOfStream();
  }

  #append() {
    try {
      if (this.#live && this.#trim()) return;
      this.#buffer.appendBuffer(this.#queue[0]);
      this.#queue.shift();
    } catch (error) {
      if (error.name !== "QuotaExceededError") return this.#onError(error);
      // Full: what was watched goes; when all is still to be watched, wait until some was.
      const seen = this.#video.currentTime - 1;
      if (seen > 0 && this.#start() < seen) this.#buffer.remove(0, seen);
      else this.#video.addEventListener("timeupdate", () => this.#pump(), { once: true });
    }
  }

  #start() {
    const ranges = this.#buffer.buffered;
    return ranges.length ? ranges.start(0) : Infinity;
  }

  #trim() {
    const edge = this.#video.currentTime - KEEP_S;
    if (this.#start() >= edge - KEEP_S) return false;
    this.#buffer.remove(0, edge);
    return true;
  }

  #stayLive() {
    const video = this.#video;
    const behind = this.ahead;
    if (behind > LIVE_FAR_S) video.currentTime = this.#end() - LIVE_START_S;
    video.playbackRate = behind > LIVE_NEAR_S && behind <= LIVE_FAR_S ? 1.1 : 1;
  }
}
