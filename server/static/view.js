// What the page shows of a run: stage, readout and messages.

const $ = (id) => document.getElementById(id);
const MAX_KEPT = 200 << 20; // bytes of a live session kept for the download

export const video = $("video");

// Settings that cannot change during a run.
const FIXED = document.querySelectorAll(
  "[name=seed], [name=size], [name=framing], [name=background], [name=model]",
);

/** `run` is "none", "video", "joining" or "live", and decides which buttons are shown. */
export function setRun(run) {
  const focused = document.activeElement;
  document.body.dataset.run = run;
  for (const knob of FIXED) knob.disabled = run !== "none";
  // Move the focus from a hidden button to the first visible one.
  if (focused?.closest(".actions") && !focused.offsetParent) {
    [...document.querySelectorAll(".actions button")].find((b) => b.offsetParent)?.focus();
  }
}

export function setStatus(text) {
  $("status").textContent = text;
}

export function setBadge(text) {
  $("badge").textContent = text;
  $("badge").hidden = !text;
}

/** Errors of the service's machine, which its operator can look into. */
const OF_THE_MACHINE = ["no_worker", "internal_error", "unreachable"];
const DOCTOR = "Run “fada doctor” on the service's machine to see what it lacks.";

export function showProblem(error) {
  const text = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  const sentence = /[.!?]$/.test(text) ? text : `${text}.`;
  $("problem").textContent = OF_THE_MACHINE.includes(error.code) ? `${sentence} ${DOCTOR}` : sentence;
  $("problem").hidden = false;
}

export function clearProblem() {
  $("problem").hidden = true;
}

/** Shows the field for an API key. */
export function showKey() {
  $("key-form").hidden = false;
  $("key").select();
}

export function showPortrait() {
  video.pause();
  video.hidden = true;
}

/** The readout of one run, and its video for download. */
export class Report {
  #began = performance.now();
  #live;
  #firstAt = null;
  #received = 0;
  #parts = [];
  #kept = 0;
  #seed = "";

  constructor({ live }) {
    this.#live = live;
    $("lead-name").textContent = live ? "Behind live" : "Made ahead";
    $("pace-name").textContent = live ? "On air" : "Real time";
    for (const id of ["first", "lead", "pace", "keep-seed"]) $(id).textContent = "–";
    $("keep-seed").disabled = true;
    $("download").hidden = true;
    URL.revokeObjectURL($("download").href);
  }

  seed(seed) {
    this.#seed = seed;
    $("keep-seed").textContent = seed;
    $("keep-seed").disabled = false;
  }

  segment(bytes) {
    if (this.#kept + bytes.length > MAX_KEPT) return;
    this.#parts.push(new Blob([bytes]));
    this.#kept += bytes.length;
  }

  fragment() {
    if (this.#firstAt !== null) return;
    this.#firstAt = performance.now();
    $("first").textContent = `${Math.round(this.#firstAt - this.#began)} ms`;
  }

  /** `ahead`: seconds received beyond the current frame. */
  progress(ahead) {
    $("lead").textContent = `${ahead.toFixed(1)} s`;
    const made = video.currentTime + ahead;
    if (made === this.#received || this.#firstAt === null) return;
    this.#received = made;
    const took = (performance.now() - this.#began) / 1000;
    $("pace").textContent = this.#live ? `${Math.round(made)} s` : `${(made / took).toFixed(1)}×`;
  }

  /** Offers the received video for download. */
  offer() {
    if (this.#firstAt === null) return;
    const link = $("download");
    link.href = URL.createObjectURL(new Blob(this.#parts, { type: "video/mp4" }));
    link.download = `fada-${this.#live ? "live-" : ""}${this.#seed}.mp4`;
    link.hidden = false;
  }
}
