"""What every video says of itself: that a machine made it, with which tool and when.

The same statement stands in three places, because no single one is read by every program and
survives every copy (docs/guide/marks.md):

- an XMP packet in a ``uuid`` box before ``moov``, where the XMP specification (part 3) puts it;
- a comment in ``moov``, which FFmpeg carries into any container;
- an XMP packet in each keyframe, which stays as long as the pictures are not encoded again.
"""

from __future__ import annotations

import struct
from datetime import UTC, date, datetime
from functools import cache
from importlib.metadata import version

from media.boxes import box

AI_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
COMMENT = f"Made by AI. IPTC DigitalSourceType: {AI_GENERATED}"

_NAMESPACES = (
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
)
_SEI, _USER_DATA_UNREGISTERED = 6, 5  # H.264, 7.4.1 and D.1
_TEXT = 1  # type of an item's value in `ilst`


@cache
def tool_version() -> str:
    return version("fada")


def today() -> date:
    """In UTC. Marks hold no time of day: the same request gives the same bytes all day."""
    return datetime.now(UTC).date()


def xmp_packet(created: date | None) -> bytes:
    """The XMP packet; without a date if ``created`` is ``None``."""
    dated = "" if created is None else f' xmp:CreateDate="{created.isoformat()}"'
    number = tool_version()
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {_NAMESPACES}><rdf:Description rdf:about=""'
        f' Iptc4xmpExt:DigitalSourceType="{AI_GENERATED}"'
        f' Iptc4xmpExt:AISystemUsed="fada" Iptc4xmpExt:AISystemVersionUsed="{number}"'
        f' xmp:CreatorTool="fada {number}"{dated}/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def xmp_box(created: date) -> bytes:
    """The ``uuid`` box with the XMP packet."""
    return box(b"uuid", XMP_UUID, xmp_packet(created))


def user_data_box(created: date) -> bytes:
    """``udta`` with comment, tool and date as items, as iTunes and FFmpeg write and read them."""
    items = {
        b"\xa9cmt": COMMENT,
        b"\xa9too": f"fada {tool_version()}",
        b"\xa9day": created.isoformat(),
    }
    entries = [
        box(kind, box(b"data", struct.pack(">2I", _TEXT, 0), text.encode()))
        for kind, text in items.items()
    ]
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    return box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", *entries)))


@cache
def keyframe_unit() -> bytes:
    """An SEI message with the XMP packet, as a NAL unit after its length.

    It has no date, so a video is the same on every day. Neither the UUID nor the text has zero
    bytes, so nothing in it needs an escape.
    """
    payload = XMP_UUID + xmp_packet(None)
    full, rest = divmod(len(payload), 255)
    size = b"\xff" * full + bytes([rest])
    unit = bytes([_SEI, _USER_DATA_UNREGISTERED]) + size + payload + b"\x80"
    return len(unit).to_bytes(4, "big") + unit
