// The form: portrait, voice and settings.

import { createAvatar } from "./api.js";
import { Recorder } from "./sound.js";

const $ = (id) => document.getElementById(id);
const form = $("form");

/** Fetches a bundled example as a file. */
async function example(name, type) {
  const response = await fetch(`/static/examples/${name}`);
  if (!response.ok) throw new Error(`the example ${name} is missing`);
  return new File([await response.blob()], name, { type });
}

function checked(name) {
  return form.elements[name].value;
}

function choose(name, value) {
  form.elements[name].value = value;
  form.querySelector(`[name="${name}"]:checked`).dispatchEvent(new Event("change", { bubbles: true }));
}

/** The chosen portrait; the service prepares it once for each latent space. */
export class Portraits {
  #own = null;
  #avatars = new Map(); // portrait's name and latent space -> promise of its avatar_id
  #poster = $("poster");
  #picture = $("own-portrait").querySelector("img");

  constructor({ onChange, onFile }) {
    for (const radio of form.elements.portrait) {
      radio.addEventListener("change", () => {
        this.#show();
        onChange();
      });
    }
    $("portrait-file").addEventListener("change", ({ target }) => {
      if (target.files[0]) onFile(target.files[0]);
      target.value = "";
    });
    this.#show();
  }

  #show() {
    const picture = form.querySelector('[name="portrait"]:checked').nextElementSibling;
    this.#poster.src = picture.src;
    this.#poster.alt = picture.alt;
  }

  /** Selects the visitor's picture once the service has found a face in it. */
  async take(file, model) {
    const avatarId = await createAvatar(file, model.name);
    URL.revokeObjectURL(this.#picture.src);
    this.#own = file;
    for (const key of this.#avatars.keys()) if (key.startsWith("own ")) this.#avatars.delete(key);
    this.#avatars.set(`own ${model.latent_space}`, Promise.resolve(avatarId));
    this.#picture.src = URL.createObjectURL(file);
    $("own-portrait").hidden = false;
    choose("portrait", "own");
  }

  /** The avatar_id of the chosen portrait for `model`; `again` recreates an expired one. */
  async avatar(model, { again }) {
    const name = checked("portrait");
    const key = `${name} ${model.latent_space}`;
    if (again || !this.#avatars.has(key)) {
      const made = this.#prepare(name, model.name);
      this.#avatars.set(key, made);
      made.catch(() => this.#avatars.delete(key));
    }
    return this.#avatars.get(key);
  }

  async #prepare(name, model) {
    const file = name === "own" ? this.#own : await example(`${name}.jpg`, "image/jpeg");
    return createAvatar(file, model);
  }
}

/** The chosen voice. */
export class Voices {
  #own = null;
  #ownUrl = null;
  #recorder = null;
  #onProblem;

  constructor({ onProblem }) {
    this.#onProblem = onProblem;
    for (const radio of form.elements.voice) radio.addEventListener("change", () => this.#show());
    $("voice-file").addEventListener("change", ({ target }) => {
      if (target.files[0]) this.take(target.files[0]);
      target.value = "";
    });
    $("record").addEventListener("click", () => this.#record().catch(onProblem));
    this.#show();
  }

  #show() {
    $("preview").src = checked("voice") === "own" ? this.#ownUrl : "/static/examples/speech.wav";
  }

  take(file) {
    if (this.#ownUrl) URL.revokeObjectURL(this.#ownUrl);
    this.#own = file;
    this.#ownUrl = URL.createObjectURL(file);
    $("own-voice").hidden = false;
    $("own-voice").querySelector("span").textContent = file.name;
    choose("voice", "own");
  }

  async file() {
    return checked("voice") === "own" ? this.#own : example("speech.wav", "audio/wav");
  }

  async #record() {
    const button = $("record");
    if (this.#recorder) {
      const recorder = this.#recorder;
      this.#recorder = null;
      button.textContent = "Record";
      button.setAttribute("aria-pressed", "false");
      this.take(await recorder.stop());
      return;
    }
    button.disabled = true;
    try {
      $("preview").pause();
      this.#recorder = await Recorder.start();
    } finally {
      button.disabled = false;
    }
    button.setAttribute("aria-pressed", "true");
    const began = Date.now();
    const tick = () => {
      if (!this.#recorder) return;
      button.textContent = `Stop recording (${Math.floor((Date.now() - began) / 1000)} s)`;
      setTimeout(tick, 250);
    };
    tick();
  }
}

/** Accepts files dropped anywhere on the page. */
export function acceptDrops({ onPortrait, onVoice, onProblem }) {
  const over = (on) => document.body.classList.toggle("dropping", on);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) over(false);
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    for (const file of event.dataTransfer.files) {
      if (file.type.startsWith("image/")) onPortrait(file);
      else if (/^(audio|video)\//.test(file.type)) onVoice(file);
      else onProblem(new Error(`${file.name} is neither a picture nor audio`));
    }
  });
}

const MODEL_KNOBS = ["audio_cfg", "reference_cfg", "steps"];
const LIVE_KNOBS = [...MODEL_KNOBS, "head_motion", "expressiveness", "blink_rate", "emotion_strength"];
const LIVE_CHOICES = ["gaze", "emotion"];

/** The settings, with the defaults of the chosen model. */
export class Knobs {
  #models = new Map();

  /** `onLive(options)` is called with the settings that a running live session can change. */
  constructor({ onLive }) {
    for (const range of form.querySelectorAll('[type="range"]')) {
      range.addEventListener("input", () => this.#label());
      range.addEventListener("change", () => onLive(this.live()));
    }
    for (const name of LIVE_CHOICES) {
      form.elements[name].addEventListener("change", () => onLive(this.live()));
    }
    form.elements.model.addEventListener("change", () => this.reset());
    $("defaults").addEventListener("click", () => {
      this.reset();
      onLive(this.live());
    });
  }

  load({ models, default: name }) {
    this.#models = new Map(models.map((model) => [model.name, model]));
    form.elements.model.replaceChildren(...models.map((model) => new Option(model.name)));
    form.elements.model.value = name;
    $("model-choice").hidden = models.length < 2;
    this.reset();
  }

  /** The chosen model's description; undefined until the models are loaded. */
  get model() {
    return this.#models.get(form.elements.model.value);
  }

  reset() {
    const model = this.model;
    for (const name of LIVE_KNOBS) form.elements[name].value = form.elements[name].defaultValue;
    for (const name of [...MODEL_KNOBS, "size"]) form.elements[name].value = model[name];
    form.elements.framing.value = "portrait";
    form.elements.background.value = "";
    for (const name of LIVE_CHOICES) form.elements[name].selectedIndex = 0;
    form.elements.seed.value = "";
    this.#label();
  }

  #label() {
    for (const range of form.querySelectorAll('[type="range"]')) {
      const value = range.step === "1" ? range.value : Number(range.value).toFixed(1);
      range.parentElement.querySelector("output").value = value;
    }
  }

  get seed() {
    return form.elements.seed.value;
  }

  set seed(value) {
    form.elements.seed.value = value;
  }

  live() {
    const scales = LIVE_KNOBS.map((name) => [name, Number(form.elements[name].value)]);
    const choices = LIVE_CHOICES.map((name) => [name, form.elements[name].value]);
    return Object.fromEntries([...scales, ...choices]);
  }

  /** All but the seed, as the API names them. */
  all() {
    const { size, framing, background, model } = form.elements;
    const behind = background.value ? { background: background.value } : {};
    return { ...this.live(), size: Number(size.value), framing: framing.value, ...behind, model: model.value };
  }
}
