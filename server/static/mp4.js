// The little MP4 parsing that the page needs.

/** The top-level box at `offset` if all of it is in `bytes`, or null. */
function boxAt(bytes, offset) {
  if (offset + 8 > bytes.length) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const size = view.getUint32(offset);
  if (size < 8) throw new Error(`MP4 box size = ${size}, expected at least 8`);
  if (offset + size > bytes.length) return null;
  return { type: String.fromCharCode(...bytes.subarray(offset + 4, offset + 8)), end: offset + size };
}

/**
 * The MediaSource type of an init segment. The three bytes after the configurationVersion of the
 * `avcC` box give its H.264 profile and level (ISO/IEC 14496-15, 5.3.3.1).
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

/** Splits a byte stream, in chunks of any length, into its init segment and moof+mdat fragments. */
export class FragmentSplitter {
  #rest = new Uint8Array(0);

  /** The segments that `chunk` completes: [{ kind: "init" | "fragment", bytes }]. */
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
