"""`fada licenses`: libraries, weights and data of this installation, with licence and origin."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fada.licences import Component, components

_ENCODER = (
    "H.264 is encoded by x264 (GPL-2.0-or-later), which PyAV's wheel brings; another encoder: "
    "FADA_ENCODER, docs/guide/licences.md"
)
# A component's type in CycloneDX.
_TYPES = {"library": "library", "weights": "machine-learning-model", "data": "data"}
_NO_SPDX = ("public domain", "free for all use", "not known", "BSD-like")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a JSON document")
    output.add_argument("--cyclonedx", action="store_true", help="print a CycloneDX 1.6 bill")


def run(options: argparse.Namespace) -> int:
    found = components()
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    elif options.cyclonedx:
        print(json.dumps(bill(found), indent=2))
    else:
        print(_table(found))
    return 0


def _table(found: Sequence[Component]) -> str:
    rows = [("what", "name", "version", "licence", "SHA-256", "origin")]
    rows += [
        (one.kind, one.name, one.version, one.licence, one.sha256[:12], one.origin) for one in found
    ]
    widths = [min(60, max(map(len, column))) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    notes = [f"{one.name}: {one.note}" for one in found if one.note]
    brought = any("x264" in one.brings for one in found)
    return "\n".join([*lines, "", *notes, *([_ENCODER] if brought else [])])


def bill(found: Sequence[Component]) -> dict[str, Any]:
    """A CycloneDX 1.6 document; it has no time or serial number, so that it can be compared."""
    root = "fada"
    licence = [{"license": {"id": "Apache-2.0"}}]
    application = {"type": "application", "bom-ref": root, "name": root,
                   "version": version(root), "licenses": licence}  # fmt: skip
    needs = [_reference(one) for one in found if one.kind != "data"]
    made_of = [
        {"ref": _reference(one), "dependsOn": [f"data:{name}" for name in one.sources]}
        for one in found
        if one.sources
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": application},
        "components": [_entry(one) for one in found],
        "dependencies": [{"ref": root, "dependsOn": needs}, *made_of],
    }


def _reference(one: Component) -> str:
    if one.kind == "library":
        return f"pkg:pypi/{one.name}@{one.version}"
    return f"{one.kind}:{one.name}"


def _entry(one: Component) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": _TYPES[one.kind],
        "bom-ref": _reference(one),
        "name": one.name,
        "licenses": _licences(one.licence),
    }
    if one.kind == "library":
        entry |= {
            "version": one.version,
            "purl": _reference(one),
            **_source(one.origin),
            "properties": [{"name": "fada:files-sha256", "value": one.sha256}],
        }
    else:
        entry["description"] = one.origin
    if one.kind == "weights":
        entry["hashes"] = [{"alg": "SHA-256", "content": one.sha256}]
    if one.brings:
        entry["components"] = [
            {
                "type": "library",
                "bom-ref": f"{_reference(one)}/{name}",
                "name": name,
                "licenses": _licences(licence),
            }
            for name, licence in one.brings.items()
        ]
    return entry


def _source(url: str) -> dict[str, Any]:
    return {"externalReferences": [{"type": "vcs", "url": url}]} if url.startswith("http") else {}


def _licences(text: str) -> list[dict[str, Any]]:
    if any(part in text for part in _NO_SPDX):
        return [{"license": {"name": text}}]
    return [{"expression": text}]
