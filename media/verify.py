"""Read the marks of a video, those of `media.marks` and others', and check what can be checked."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO
from xml.etree import ElementTree

import av
from av.error import FFmpegError

from media.errors import MediaError
from media.marks import XMP_UUID
from media.signing import SignedManifest, read_manifest

C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
# Terms of IPTC's vocabulary for what an AI made, wholly or in part.
_BY_AI = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "algorithmicMedia")
_TERM = re.compile(r"https?://cv\.iptc\.org/newscodes/digitalsourcetype/(\w+)")
_IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
_XMP = "{http://ns.adobe.com/xap/1.0/}"
_RESOURCE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}resource"
_MAX_BOX_BYTES = 1 << 20  # of one that is read
_MAX_PACKETS = 1_000_000
_MAX_TEXT = 100  # letters of what a file says


@dataclass(frozen=True)
class Mark:
    """``name`` of the mark, ``where`` it is, and what it says: an IPTC ``source_type`` by its last
    word, ``tool`` and ``date``; empty where it is silent.

    ``status``: ``claimed`` (anyone could have written it), ``covered`` (by a manifest that holds),
    ``valid``, ``trusted``, ``broken`` or ``unchecked``; ``detail`` gives the reason.
    """

    name: str
    where: str
    source_type: str
    tool: str = ""
    date: str = ""
    status: str = "claimed"
    detail: str = ""


@dataclass(frozen=True)
class MarksReport:
    """All marks of a file. ``verdict`` is one of

    - ``signed``: a manifest holds;
    - ``broken``: there is a manifest, and the file is not what was signed;
    - ``unchecked``: there is a manifest, and the extra ``c2pa`` is not installed;
    - ``claimed, unsigned``: marks without a manifest, which anyone could have written;
    - ``unmarked``: none.

    ``made_by_ai``: whether any mark says so.
    """

    verdict: str
    made_by_ai: bool
    marks: tuple[Mark, ...]


def read_marks(file: BinaryIO, anchors: str | None = None) -> MarksReport:
    """The marks of a video ``file``; blocks.

    ``anchors``: certificates (PEM) whose signers are trusted. Raises `MediaError` for a file that
    is no video.
    """
    marks = [*_box_marks(file), *_stream_marks(file)]
    manifest = _manifest_mark(file, anchors)
    if manifest is None:
        verdict = "claimed, unsigned" if marks else "unmarked"
    else:
        known = {"broken": "broken", "unchecked": "unchecked"}
        verdict = known.get(manifest.status, "signed")
        if verdict == "signed":
            marks = [_covered(mark) for mark in marks]
        marks.append(manifest)
    return MarksReport(verdict, any(mark.source_type in _BY_AI for mark in marks), tuple(marks))


def _covered(mark: Mark) -> Mark:
    return Mark(**{**vars(mark), "status": "covered", "detail": "by the C2PA manifest"})


def _manifest_mark(file: BinaryIO, anchors: str | None) -> Mark | None:
    there = any(kind == b"uuid" and body[:16] == C2PA_UUID for kind, body in _boxes(file))
    try:
        file.seek(0)
        manifest = read_manifest(file, anchors) if there else None
    except ModuleNotFoundError:
        return Mark(
            "C2PA", "uuid box", "", status="unchecked", detail="needs the extra c2pa of fada"
        )
    return None if manifest is None else _mark_of(manifest)


def _mark_of(manifest: SignedManifest) -> Mark:
    detail = f"signed by {_plain(manifest.signer)}" if manifest.signer else ""
    if manifest.state == "invalid":
        detail = _plain(", ".join(manifest.errors))
    elif manifest.state == "valid":
        detail += ", whose certificate leads to no given anchor"
    return Mark(
        "C2PA",
        "uuid box",
        _term(manifest.source_type),
        _plain(manifest.tool),
        manifest.signed[:10],
        "broken" if manifest.state == "invalid" else manifest.state,
        detail,
    )


def _box_marks(file: BinaryIO) -> Iterator[Mark]:
    """XMP where the XMP specification puts it, in MP4 and in QuickTime files."""
    for kind, body in _boxes(file):
        if kind == b"uuid" and body[:16] == XMP_UUID:
            yield from _xmp_mark(body[16:], "uuid box")
        elif kind == b"moov":
            for inner, content in _children(body):
                if inner == b"udta":
                    for item, text in _children(content):
                        if item == b"XMP_":
                            yield from _xmp_mark(text, "moov/udta")


def _stream_marks(file: BinaryIO) -> Iterator[Mark]:
    """The comment, and XMP in keyframes, of any container."""
    file.seek(0)
    try:
        with av.open(file, "r") as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
            if not container.streams.video:
                raise MediaError("unsupported_media", "the file has no video")
            term = _term(tags.get("comment", ""))
            if term:
                date = tags.get("date", tags.get("creation_time", ""))[:10]
                tool = tags.get("encoder", "")
                yield Mark("comment", container.format.name, term, _plain(tool), _plain(date))
            yield from _keyframe_mark(container)
    except FFmpegError as error:
        raise MediaError("unsupported_media", f"the file is no video: {error.strerror}") from error


def _keyframe_mark(container: av.container.InputContainer) -> Iterator[Mark]:
    found, keyframes, marked = list[Mark](), 0, 0
    for packet in islice(container.demux(container.streams.video[0]), _MAX_PACKETS):
        if not packet.is_keyframe or not packet.size:
            continue
        keyframes += 1
        data = bytes(packet)
        at = data.find(XMP_UUID)
        if at >= 0:
            found += _xmp_mark(data[at + 16 :], "keyframes")
            marked += 1
    if found:
        yield Mark(**{**vars(found[0]), "where": f"{marked} of {keyframes} keyframes"})


def _xmp_mark(packet: bytes, where: str) -> Iterator[Mark]:
    """What an XMP packet says, if anything, of the source type."""
    start, end = packet.find(b"<x:xmpmeta"), packet.find(b"</x:xmpmeta>")
    text = packet[start : end + len(b"</x:xmpmeta>")]
    if start < 0 or end < 0 or b"<!" in text:  # XMP has no document type, and so no entities
        return
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return
    term = _term(_value(root, f"{_IPTC}DigitalSourceType"))
    if term:
        tool, date = (_value(root, _XMP + name) for name in ("CreatorTool", "CreateDate"))
        yield Mark("XMP", where, term, _plain(tool), _plain(date[:10]))


def _value(root: ElementTree.Element, name: str) -> str:
    """A simple property: an attribute, or an element with text or a resource."""
    for element in root.iter():
        if name in element.attrib:
            return element.attrib[name]
        if element.tag == name:
            return element.attrib.get(_RESOURCE, element.text or "")
    return ""


def _term(text: str) -> str:
    """The IPTC term that ``text`` holds, by its last word."""
    found = _TERM.search(text)
    return found[1] if found else ""


def _plain(text: str) -> str:
    """What a file says, fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_TEXT])


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The top-level boxes of an MP4, those that can hold marks with their content."""
    at = 0
    while True:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = struct.unpack_from(">I4s", head)
        skip = 8
        if size == 1 and len(head) == 16:
            (size,), skip = struct.unpack_from(">Q", head, 8), 16
        if size < skip:
            return  # no MP4, or the last box, which is mdat
        wanted = kind in (b"uuid", b"moov") and size <= _MAX_BOX_BYTES
        file.seek(at + skip)
        yield kind, file.read(size - skip) if wanted else b""
        at += size


def _children(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(body):
        size, kind = struct.unpack_from(">I4s", body, at)
        if size < 8:
            return
        yield kind, body[at + 8 : at + size]
        at += size
