// Plays a growing video through MediaSource.

const KEEP_S = 30; // seconds kept behind the playhead of a live stream
const LIVE_FAR_S = 1.5; // further behind the live edge than this: jump
const LIVE_NEAR_S = 0.6; // further than this: play slightly faster
const LIVE_START_S = 0.25; // distance to the live edge after a jump

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
    // Safari's ManagedMediaSource requires that remote playback is disabled.
    video.disableRemotePlayback = true;
    this.#open = new Promise((resolve) =>
      this.#source.addEventListener("sourceopen", resolve, { once: true }),
    );
    this.#url = URL.createObjectURL(this.#source);
    video.src = this.#url;
    video.playbackRate = 1;
  }

  /** Starts playback once the MIME type is known; bytes pushed before are queued. */
  async start(mime) {
    await this.#open;
    if (this.#closed) return;
    if (!Source.isTypeSupported(mime)) throw new Error(`this browser cannot play ${mime}`);
    this.#buffer = this.#source.addSourceBuffer(mime);
    this.#buffer.addEventListener("updateend", () => this.#pump());
    this.#pump();
    // Browsers that require a click first reject this: show their own controls then.
    this.#video.play().catch(() => {
      this.#video.controls = true;
    });
  }

  push(bytes) {
    this.#queue.push(bytes);
    this.#pump();
  }

  /** No more bytes follow. */
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

  /** Seconds of video received beyond the current frame. */
  get ahead() {
    const end = this.#end();
    return end === null ? 0 : Math.max(0, end - this.#video.currentTime);
  }

  /** Skips forward to `time`, in seconds. */
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
      // The buffer is full: remove what has been played, or wait until something has.
      const played = this.#video.currentTime - 1;
      if (played > 0 && this.#start() < played) this.#buffer.remove(0, played);
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
