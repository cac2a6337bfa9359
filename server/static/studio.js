// The studio: connects the form, the service and the view.

import { animate, key, models, Problem, storeKey } from "./api.js";
import { LiveCall } from "./call.js";
import { acceptDrops, Knobs, Portraits, Voices } from "./inputs.js";
import { LiveSession } from "./live.js";
import { FragmentSplitter, mimeOf } from "./mp4.js";
import { canPlay, Player } from "./player.js";
import { LiveAudio } from "./sound.js";
import * as view from "./view.js";

const $ = (id) => document.getElementById(id);
const RETRY_MS = 2000;
const READ_OUT_MS = 100;

/** The current run or null: { stop }, for a live session also { sound, session, update }; from the
 * first bytes on also { player, report }. */
let run = null;
let lastPlayer = null;
/** Resolves once the models are known. */
let connected = null;

const portraits = new Portraits({ onChange: changePortrait, onFile: takePortrait });
const voices = new Voices({ onProblem: view.showProblem });
const knobs = new Knobs({ onLive: (options) => run?.update?.(options) });

function newPlayer({ live }) {
  lastPlayer?.close();
  view.video.controls = false;
  view.video.hidden = false;
  lastPlayer = new Player(view.video, { live, onError: fail });
  return lastPlayer;
}

function newCallPlayer(call) {
  lastPlayer?.close();
  view.video.removeAttribute("src");
  view.video.controls = false;
  view.video.hidden = false;
  lastPlayer = call.play(view.video);
  return lastPlayer;
}

function changePortrait() {
  if (!run) view.showPortrait();
  view.clearProblem();
  // Prepare it while the visitor goes on choosing; errors are shown when it should speak.
  if (knobs.model) portraits.avatar(knobs.model, { again: false }).catch(() => {});
}

/** Reports a picture without a face at once and keeps the previous portrait. */
async function takePortrait(file) {
  view.clearProblem();
  if (!run) view.setStatus("Looking for a face…");
  try {
    await connected;
    await portraits.take(file, knobs.model);
  } catch (error) {
    view.showProblem(error);
  } finally {
    if (!run) view.setStatus("");
  }
}

function fail(error) {
  view.setStatus("");
  if (error.name !== "AbortError") view.showProblem(error);
  if (error.code === "unauthorized") view.showKey();
}

/** Resolves like `promise`, or rejects with the AbortError of `signal`. */
function unlessAborted(promise, signal) {
  const aborted = new Promise((_, reject) =>
    signal.addEventListener("abort", () => reject(signal.reason), { once: true }),
  );
  return Promise.race([promise, aborted]);
}

/** Runs `work(avatarId)`, and again with a new avatar if the old one has expired. */
async function withAvatar(signal, work) {
  view.setStatus("Preparing the portrait…");
  const avatar = (again) => unlessAborted(portraits.avatar(knobs.model, { again }), signal);
  try {
    return await work(await avatar(false));
  } catch (error) {
    if (!(error instanceof Problem) || error.code !== "not_found") throw error;
    return work(await avatar(true));
  }
}

function begin(name) {
  view.clearProblem();
  $("preview").pause();
  view.setRun(name);
}

function finish() {
  run = null;
  view.setRun("none");
  view.setBadge("");
}

async function speak() {
  begin("video");
  const abort = new AbortController();
  run = { stop: () => abort.abort() };
  try {
    const audio = await voices.file();
    await withAvatar(abort.signal, (avatarId) =>
      stream({ avatarId, audio, signal: abort.signal }),
    );
  } catch (error) {
    if (run.player) keepVideo(run);
    else view.showPortrait();
    fail(error);
  } finally {
    finish();
  }
}

/** Keeps the video of a run for replay and download. */
function keepVideo({ player, report }) {
  player.finish();
  report.progress(player.ahead);
  report.offer();
  view.video.controls = true;
}

async function stream({ avatarId, audio, signal }) {
  view.setStatus("Processing the voice…");
  const options = knobs.seed ? { ...knobs.all(), seed: knobs.seed } : knobs.all();
  const report = new view.Report({ live: false });
  const splitter = new FragmentSplitter();
  let player = null;
  await animate({
    avatarId,
    audio,
    options,
    signal,
    onStart: ({ seed }) => report.seed(seed),
    onChunk: (chunk) => {
      for (const { kind, bytes } of splitter.push(chunk)) {
        report.segment(bytes);
        if (kind === "init") {
          player = newPlayer({ live: false });
          run = { ...run, player, report };
          player.start(mimeOf(bytes)).catch(fail);
          view.setStatus("");
        } else report.fragment();
        player.push(bytes);
      }
    },
  });
  keepVideo(run);
}

/** Runs a live session: the avatar idles and speaks the audio that it is sent. */
async function goLive() {
  if (!$("form").reportValidity()) return;
  begin("joining");
  const sound = new LiveAudio((pcm) => run?.session?.pcm?.(pcm));
  const abort = new AbortController();
  run = { sound, stop: () => abort.abort() };
  showAudioState(sound);
  try {
    const { signal } = abort;
    await withAvatar(signal, (avatarId) => runLive({ avatarId, sound, signal }));
    endLive();
    view.setStatus("");
  } catch (error) {
    endLive();
    fail(error);
  } finally {
    sound.close();
    view.video.muted = false;
    finish();
  }
}

/** Keeps the video of a session; a call leaves none. */
function endLive() {
  if (run.player?.finish) return keepVideo(run);
  run.player?.close();
  view.showPortrait();
}

/** A session over WebRTC, if that is wanted and connects; else over the WebSocket. */
async function runLive({ avatarId, sound, signal }) {
  if (!$("webrtc").checked) return runSession({ avatarId, sound, signal, Session: LiveSession });
  try {
    return await runSession({ avatarId, sound, signal, Session: LiveCall });
  } catch (error) {
    if (error.code !== "no_webrtc") throw error;
  }
  $("webrtc").checked = false;
  sound.dropTrack();
  return runSession({ avatarId, sound, signal, Session: LiveSession });
}

/** Resolves when the session has ended normally; rejects with the error that ended it. */
function runSession({ avatarId, sound, signal, Session }) {
  const report = new view.Report({ live: true });
  view.setStatus("Connecting…");
  return new Promise((resolve, reject) => {
    const on = {
      ready: ({ mime }, seed) => {
        report.seed(seed);
        const player = session.play ? newCallPlayer(session) : newPlayer({ live: true });
        run = { ...run, session, player, report, update: (options) => session.update(options) };
        player.start?.(mime).catch(reject);
        $("state").value = "idle";
        view.setRun("live");
        view.setStatus("Turn the microphone on, or let it speak the chosen voice.");
      },
      init: (bytes) => {
        report.segment(bytes);
        run.player.push(bytes);
      },
      fragment: ({ kind }, bytes) => {
        report.fragment();
        if (bytes) {
          report.segment(bytes);
          run.player.push(bytes);
        }
        view.setBadge(kind === "speech" ? "Live · speaking" : "Live · resting");
        if (kind === "speech") view.setStatus("");
      },
      interrupted: ({ at_s }) => run.player.skipTo(at_s),
      done: () => view.setBadge(""),
      closed: (problem) => (problem ? reject(problem) : resolve()),
    };
    const session = new Session({
      avatarId,
      ...(Session === LiveCall ? { track: sound.track } : { sampleRate: sound.rate }),
      options: knobs.all(),
      seed: knobs.seed,
      idle: true,
      on,
    });
    run.session = session;
    signal.addEventListener("abort", () => {
      reject(signal.reason);
      session.end();
    });
  });
}

/** Shows whether the microphone and the avatar's sound are on. */
function showAudioState(sound) {
  $("microphone").setAttribute("aria-pressed", String(sound.microphoneOn));
  $("microphone").textContent = sound.microphoneOn ? "Microphone is on" : "Microphone";
  $("loud").setAttribute("aria-pressed", String(!view.video.muted));
  $("loud").textContent = view.video.muted ? "Sound is off" : "Sound is on";
}

async function toggleMicrophone() {
  const { sound } = run;
  if (sound.microphoneOn) sound.stopMicrophone();
  else await sound.startMicrophone();
  // Hearing one's own voice half a second late is distracting, and the microphone would pick it up.
  view.video.muted = sound.microphoneOn;
  showAudioState(sound);
}

function interrupt() {
  run.sound.stopFile();
  run.session.interrupt();
}

function onButton(id, action) {
  $(id).addEventListener("click", async () => {
    try {
      await action();
    } catch (error) {
      view.showProblem(error);
    }
  });
}

function wire() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!run) speak();
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    storeKey($("key").value);
    $("key-form").hidden = true;
    view.clearProblem();
  });
  onButton("stop", () => run.stop());
  onButton("go-live", goLive);
  onButton("microphone", toggleMicrophone);
  onButton("say", async () => run.sound.sendFile(await voices.file()));
  onButton("interrupt", interrupt);
  onButton("loud", () => {
    view.video.muted = !view.video.muted;
    showAudioState(run.sound);
  });
  $("state").addEventListener("change", () => run.session.state($("state").value));
  onButton("end", () => {
    run.sound.stopFile();
    run.sound.stopMicrophone();
    run.session.end();
  });
  onButton("keep-seed", () => {
    knobs.seed = $("keep-seed").textContent;
  });
  addEventListener("keydown", ({ key }) => {
    if (key !== "Escape" || !run) return;
    if (run.session && run.player) interrupt();
    else run.stop();
  });
  acceptDrops({
    onPortrait: takePortrait,
    onVoice: (file) => voices.take(file),
    onProblem: view.showProblem,
  });
  setInterval(() => run?.player && run.report.progress(run.player.ahead), READ_OUT_MS);
}

/** Asks for an API key; resolves when one is entered. */
function askForKey() {
  view.setStatus("");
  view.showKey();
  return new Promise((resolve) => $("key-form").addEventListener("submit", resolve, { once: true }));
}

/** Waits for an API key, if required, and for a worker; then enables the page. */
async function connect() {
  for (;;) {
    try {
      const found = await models();
      if (found.models.length) {
        knobs.load(found);
        view.setStatus("");
        $("speak").disabled = $("go-live").disabled = false;
        return;
      }
      view.setStatus("Waiting for a worker… If none comes: “fada doctor” on the service's machine.");
    } catch (error) {
      if (error.code === "unauthorized") {
        if (key()) view.showProblem(error);
        await askForKey();
        continue;
      }
      view.setStatus("The service does not respond; retrying…");
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

$("speak").disabled = $("go-live").disabled = true;
if (canPlay) {
  wire();
  connected = connect();
} else view.showProblem(new Error("this browser cannot play a video while it is being made"));
