// The page's REST calls, and the API key, which is stored in this browser only.

const KEY = "fada.key";

/** The stored API key, or "". */
export function key() {
  return localStorage.getItem(KEY) ?? "";
}

export function storeKey(text) {
  localStorage.setItem(KEY, text);
}

/** Subprotocols for a WebSocket, which cannot send headers: the key in base64url. */
export function subprotocols() {
  if (!key()) return [];
  const text = btoa(key()).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return ["fada", `fada.key.${text}`];
}

/** An error of the service: `code` is stable, `message` is for people. */
export class Problem extends Error {
  constructor(code, detail) {
    super(detail);
    this.code = code;
  }
}

async function problemOf(response) {
  if (response.headers.get("content-type")?.startsWith("application/problem+json")) {
    const { code, detail } = await response.json();
    return new Problem(code, detail);
  }
  return new Problem("unknown", `the service responded with ${response.status} ${response.statusText}`);
}

async function call(path, init) {
  let response;
  try {
    const auth = key() ? { Authorization: `Bearer ${key()}` } : {};
    response = await fetch(path, { ...init, headers: { ...init?.headers, ...auth } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("unreachable", "the service does not respond; is it still running?");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** The loaded models: { models, default }. */
export async function models() {
  return (await call("/models")).json();
}

/** Prepares a portrait for the latent space of the model named `model`; resolves to its avatar_id. */
export async function createAvatar(file, model) {
  const form = new FormData();
  form.set("portrait", file);
  form.set("model", model);
  const response = await call("/avatars", { method: "POST", body: form });
  return (await response.json()).avatar_id;
}

/** Begins a session over WebRTC by an offer; resolves to { answer, location }. */
export async function beginCall(avatarId, options, offer) {
  const query = new URLSearchParams({ avatar_id: avatarId, ...options });
  const headers = { "Content-Type": "application/sdp" };
  const response = await call(`/webrtc?${query}`, { method: "POST", headers, body: offer });
  return { answer: await response.text(), location: response.headers.get("Location") };
}

/** Ends a session over WebRTC, if it has not ended by itself. */
export function endCall(location) {
  call(location, { method: "DELETE" }).catch(() => {});
}

/** The marks of a video file: { verdict, made_by_ai, marks }. */
export async function verify(file) {
  const form = new FormData();
  form.set("video", file);
  return (await call("/verify", { method: "POST", body: form })).json();
}

/**
 * Requests a video and passes on its bytes as they arrive: `onStart({ seed })`, then
 * `onChunk(Uint8Array)`. Resolves after the last one; rejects with a Problem, or with the
 * AbortError of `signal`.
 */
export async function animate({ avatarId, audio, options, signal, onStart, onChunk }) {
  const form = new FormData();
  form.set("avatar_id", avatarId);
  form.set("audio", audio);
  for (const [name, value] of Object.entries(options)) form.set(name, value);
  const response = await call("/animate", { method: "POST", body: form, signal });
  onStart({ seed: response.headers.get("X-Seed") });
  await chunks(response, onChunk);
}

/**
 * Requests motion: `onNames({ fps, actions, pose })`, then `onFrame({ t, actions, pose })` for each
 * frame, as it is made. Resolves and rejects as `animate` does.
 */
export async function motion({ onNames, onFrame, options, ...request }) {
  const decoder = new TextDecoder();
  let rest = "";
  let named = false;
  await animate({
    ...request,
    options: { ...options, output: "motion" },
    onStart: () => {},
    onChunk: (bytes) => {
      const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => JSON.parse(text))) {
        if (named) onFrame(line);
        else onNames(line);
        named = true;
      }
    },
  });
}

async function chunks(response, onChunk) {
  const reader = response.body.getReader();
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("broken", "the video ended early; please try again");
    }
    if (part.done) return;
    onChunk(part.value);
  }
}
