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

const digits = (number) => String(number).padStart(2, "0");

// By the box that configures the decoder: its codec (RFC 6381), from the bytes after its name.
const CODECS = {
  // ISO/IEC 14496-15, 5.3.3.1: after the version, three bytes of profile and level
  avcC: (b) => `avc1.${[...b.subarray(1, 4)].map((n) => n.toString(16).padStart(2, "0")).join("")}`,
  // VP Codec ISO Media File Format Binding: after version and flags, profile, level, bit depth
  vpcC: (b) => `vp09.${digits(b[4])}.${digits(b[5])}.${digits(b[6] >> 4)}`,
  // AV1 Codec ISO Media File Format Binding, 2.3.3: profile and level in the second byte
  av1C: (b) => `av01.${b[1] >> 5}.${digits(b[1] & 31)}M.08`,
};

/** The MediaSource type of an init segment. */
export function mimeOf(init) {
  for (let i = 4; i + 12 <= init.length; i++) {
    const codec = CODECS[String.fromCharCode(...init.subarray(i, i + 4))];
    if (codec) return `video/mp4; codecs="${codec(init.subarray(i + 4))},mp4a.40.2"`;
  }
  throw new Error("the video has no track that this page knows");
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
