// Reads the little of MP4 that the page needs. Knows boxes; nothing of playback or transport.

/** A top-level box that lies wholly within `bytes` at `offset`, or null. */
function boxAt(bytes, offset) {
  if (offset + 8 > bytes.length) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const size = view.getUint32(offset);
  if (size < 8) throw new Error(`an MP4 box of ${size} bytes`);
  if (offset + size > bytes.length) return null;
  return { type: String.fromCharCode(...bytes.subarray(offset + 4, offset + 8)), end: offset + size };
}

/**
 * The MediaSource type of an init segment: its H.264 profile is named by the three bytes after
 * the configurationVersion of the `avcC` box (ISO/IEC 14496-15, 5.3.3.1).
 */
export function mimeOf(init) {
  for (let i = 4; i + 8 <= init.length; i++) {
    if (init[i] === 0x61 && init[i + 1] === 0x76 && init[i + 2] === 0x63 && init[i + 3] === 0x43) {
      const profile = [...init.subarray(i + 5, i + 8)]
        .map((byte) => byte.toString(16).padStart(2, "0"))
        .join("");
      return `video/mp4; codecs="avc1.${profile},mp4a.40.2"`;
    }
  }
  throw new Error("the video has no H.264 track");
}

/** Cuts a byte stream of any chunking into its init segment and its moof+mdat fragments. */
export class FragmentCutter {
  #rest = new Uint8Array(0);

  /** All segments that are whole after `chunk`: [{ kind: "init" | "fragment", bytes }]. */
  push(chunk) {
    const bytes = new Uint8Array(this.#rest.length + chunk.length);
    bytes.set(this.#rest);
    bytes.set(chunk, this.#rest.length);
    const segments = [];
    let start = 0;
    for (let box = boxAt(bytes, 0); box; box = boxAt(bytes, box.end)) {
      if (box.type !== "moov" && box.type !== "mdat") continue;
      const kind = box.type === "moov" ? "init" : "fragment";
      segments.push({ kind, bytes: bytes.slice(start, box.end) });
      start = box.end;
    }
    this.#rest = bytes.slice(start);
    return segments;
  }
}
