"""Whatever ships or is needed by default has an entry; weights load only as they were entered."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fada.cli import main
from fada.licences import components, library_entries, normalised, required
from model import manifest
from model.manifest import WEIGHTS, data_entries, weights_entries
from model.motion.checkpoint import load_weights

ROOT = Path(__file__).parents[2]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["licenses", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_every_file_of_weights_is_in_the_manifest_as_it_is() -> None:
    files = {path.name for path in WEIGHTS.iterdir() if path.suffix in (".safetensors", ".tflite")}
    known = {"MANIFEST.toml", "MODEL_CARD.md", "pyproject.toml"}
    others = {path.name for path in WEIGHTS.iterdir() if path.is_file()} - files
    assert others == known, "a file of another kind needs an entry in MANIFEST.toml"
    assert files == set(weights_entries())
    for name, entry in weights_entries().items():
        assert manifest.verified(WEIGHTS / name)
        assert entry.licence and entry.origin and set(entry.sources) <= set(data_entries()), name


def test_every_default_dependency_has_an_entry() -> None:
    entries = library_entries()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *extras["serve"], *extras["c2pa"], *extras["otel"]]
    direct += [text for name in extras if "tensorrt" in name for text in extras[name]]
    names = {normalised(re.match(r"[\w.-]+", text)[0]) for text in direct}  # type: ignore[index]
    names |= set(required("fada", ["serve", "c2pa", "otel", "tensorrt"]))
    names -= {"fada"}
    cuda = {name for name in names if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert names - cuda - set(entries) == set(), "fada/libraries.toml wants an entry"
    assert all(entry["licence"] and entry["origin"] for entry in entries.values())


def test_weights_that_were_changed_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "motion-fast.safetensors"
    blob = bytearray((WEIGHTS / path.name).read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    load_weights(path)  # one's own, in a folder of one's own
    monkeypatch.setattr(manifest, "WEIGHTS", tmp_path)
    manifest.verified.cache_clear()
    with pytest.raises(ValueError, match="SHA-256 = .* expected b5cee3"):
        load_weights(path)
    shutil.move(path, other := tmp_path / "unknown.safetensors")
    with pytest.raises(ValueError, match="has no entry in .*MANIFEST.toml"):
        load_weights(other)
    manifest.verified.cache_clear()


def test_the_command_lists_all_with_licence_and_hash(capsys: pytest.CaptureFixture[str]) -> None:
    table = printed(capsys)
    for name in ("av", "torch", "motion-fast.safetensors", "grid", "face_blendshapes.tflite"):
        assert re.search(rf"^\w+ +{re.escape(name)} ", table, re.MULTILINE), name
    assert "x264 (GPL-2.0-or-later)" in table
    found = json.loads(printed(capsys, "--json"))
    assert {one["kind"] for one in found} == {"library", "weights", "data"}
    assert all(len(one["sha256"]) == 64 for one in found if one["kind"] != "data")


def test_the_bill_is_a_cyclonedx_document(capsys: pytest.CaptureFixture[str]) -> None:
    bill: dict[str, Any] = json.loads(printed(capsys, "--cyclonedx"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    by_name = {one["name"]: one for one in bill["components"]}
    assert len(by_name) == len(components())
    assert by_name["av"]["purl"].startswith("pkg:pypi/av@")
    assert "x264" in {one["name"] for one in by_name["av"]["components"]}
    fast = by_name["motion-fast.safetensors"]
    assert fast["hashes"][0]["content"] == weights_entries()["motion-fast.safetensors"].sha256
    refs = {one["bom-ref"] for one in bill["components"]} | {"fada"}
    for one in bill["dependencies"]:
        assert {one["ref"], *one["dependsOn"]} <= refs
