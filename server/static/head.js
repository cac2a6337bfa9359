// The page of the 3D head. `?bare` shows the head alone, live from the microphone, on nothing.

import { createAvatar, models, motion } from "./api.js";
import { Head } from "./head-model.js";
import { LiveSession } from "./live.js";
import { LiveAudio } from "./sound.js";

const EXAMPLES = "/static/examples/";
const RETRY_MS = 3000; // of a bare head that is not live
const AHEAD_FRAMES = 10; // made before the sound begins
const DELAY_S = 0.25; // of a live session, for messages that come unevenly
const KEPT_FRAMES = 250; // of a live session

const $ = (id) => document.getElementById(id);
const bare = new URLSearchParams(location.search).has("bare");

/** Frames by number: { actions, pose }, by name. */
class Track {
  #names = null;
  #frames = new Map();
  #fps = 25;

  begin({ fps, actions, pose }) {
    this.#fps = fps;
    this.#names = { actions, pose };
    this.#frames.clear();
  }

  get length() {
    return this.#frames.size;
  }

  add(t, actions, pose) {
    this.#frames.set(Math.round(t * this.#fps), { actions, pose });
    if (this.#frames.size > KEPT_FRAMES && live) this.#frames.delete(this.#frames.keys().next().value);
  }

  /** Between the frames around `t` seconds; null where there is none. */
  at(t) {
    const place = Math.max(0, t * this.#fps);
    const first = this.#frames.get(Math.floor(place));
    if (!first) return null;
    const second = this.#frames.get(Math.floor(place) + 1) ?? first;
    const share = place - Math.floor(place);
    const mixed = (kind) =>
      Object.fromEntries(
        this.#names[kind].map((name, i) => [name, first[kind][i] + share * (second[kind][i] - first[kind][i])]),
      );
    return { actions: mixed("actions"), pose: mixed("pose") };
  }
}

const track = new Track();
const audio = new Audio();
let clock = () => 0; // seconds of the track that are shown now
let live = null;
let avatar = null;
let request = null;

function say(text, problem = null) {
  $("note").textContent = text;
  $("problem").textContent = problem ?? "";
  $("problem").hidden = !problem;
}

/** The motion is made for a face: the example portrait's. */
async function avatarId() {
  if (avatar) return avatar;
  const portrait = await (await fetch(`${EXAMPLES}presenter.jpg`)).blob();
  avatar = await createAvatar(portrait, (await models()).default);
  return avatar;
}

async function speak() {
  request?.abort();
  stopLive();
  request = new AbortController();
  const file = $("file").files[0] ?? (await (await fetch(`${EXAMPLES}speech.wav`)).blob());
  audio.src = URL.createObjectURL(file);
  clock = () => audio.currentTime;
  say("Listening to the speech…");
  let begun = false;
  const begin = async () => {
    begun = true;
    say("Speaking.");
    await audio.play();
  };
  await motion({
    avatarId: await avatarId(),
    audio: file,
    options: { emotion: $("emotion").value },
    signal: request.signal,
    onNames: (names) => track.begin(names),
    onFrame: ({ t, actions, pose }) => {
      track.add(t, actions, pose);
      if (!begun && track.length >= AHEAD_FRAMES) begin();
    },
  });
  if (!begun) await begin();
}

async function goLive() {
  audio.pause();
  const id = await avatarId();
  let began = null;
  const sound = new LiveAudio((pcm) => session.pcm(pcm));
  const session = new LiveSession({
    avatarId: id,
    sampleRate: sound.rate,
    options: { emotion: $("emotion").value, output: "motion" },
    seed: "",
    idle: true,
    on: {
      ready: (message) => {
        track.begin(message);
        clock = () => (began === null ? 0 : performance.now() / 1000 - began);
        say("Live: speak.");
      },
      motion: ({ start_s, duration_s, actions, pose }) => {
        const now = performance.now() / 1000;
        began ??= now - start_s + DELAY_S;
        if (now - began > start_s + duration_s) began = now - start_s + DELAY_S; // it came late
        actions.forEach((row, k) => track.add(start_s + (k * duration_s) / actions.length, row, pose[k]));
      },
      interrupted: () => {},
      done: () => {},
      closed: (problem) => {
        stopLive();
        say("", problem?.message);
      },
    },
  });
  live = { session, sound };
  $("live").textContent = "Stop";
  await sound.startMicrophone();
}

function stopLive() {
  const was = live;
  live = null;
  $("live").textContent = "Go live";
  was?.sound.close();
  was?.session.end();
}

const attempt = (work) =>
  work().catch((error) => {
    if (error.name !== "AbortError") say("", error.message);
  });

audio.addEventListener("ended", () => say("Done."));
$("file").addEventListener("change", () => ($("name").textContent = $("file").files[0]?.name ?? "Example speech"));
$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(speak);
});
$("live").addEventListener("click", () => (live ? stopLive() : attempt(goLive)));
document.body.classList.toggle("bare", bare);

const head = await Head.load($("head"), "/static/head.glb");
let shown = { actions: {}, pose: {} };
const frame = () => {
  shown = track.at(clock()) ?? shown;
  head.draw(shown.actions, shown.pose);
  requestAnimationFrame(frame);
};
frame();
document.body.dataset.ready = "yes";
if (bare) {
  // Its button is hidden.
  let starting = null;
  const stayLive = () => {
    starting ??= live ? null : attempt(goLive).finally(() => (starting = null));
  };
  stayLive();
  setInterval(stayLive, RETRY_MS);
}
