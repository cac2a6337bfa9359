"""An engine is loaded only where everything that identifies it is equal; refusals state why."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from engines import artifacts
from engines.artifacts import Manifest, Requirements, incompatibility

MACHINE = {"device": "cuda", "gpu": "NVIDIA L4", "capability": "8.9", "torch": "2.13.0"}
GOOD = Manifest(
    model="motion-fast",
    backend="tensorrt",
    precision="fp16",
    batch=(1, 8),
    weights="a" * 64,
    code="b" * 64,
    machine=MACHINE,
    shapes={"x_t": (8, 58), "t": ()},
    files={},
    tolerance=0.02,
    parity={"1": 0.001, "8": 0.002},
)
HERE = Requirements("a" * 64, "b" * 64, {"x_t": (8, 58), "t": ()}, {"tensorrt": MACHINE})
SLOW_DISK = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
words = st.text('abc é"\\\n', min_size=1, max_size=4)
manifests = st.builds(
    Manifest,
    model=words,
    backend=st.sampled_from(["tensorrt", "compiled"]),
    precision=st.sampled_from(["fp32", "fp16", "bf16", "fp8"]),
    batch=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    weights=words,
    code=words,
    machine=st.dictionaries(words, words, max_size=2),
    shapes=st.dictionaries(words, st.lists(st.integers(1, 99), max_size=2).map(tuple), max_size=2),
    files=st.dictionaries(words, words, max_size=3),
    tolerance=st.floats(0.0, 1.0),
    parity=st.dictionaries(words, st.floats(0.0, 1.0), max_size=3),
)


def test_the_same_network_on_the_same_machine_is_not_refused() -> None:
    assert incompatibility(GOOD, HERE) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backend": "compiled"}, "it needs compiled, available here: tensorrt"),
        ({"weights": "c" * 64}, "built from other weights: cccccccccccc, here aaaaaaaaaaaa"),
        ({"code": "c"}, "the network's code has changed"),
        ({"shapes": {"x_t": (8, 60), "t": ()}}, r"x_t \(8, 60\), here \(8, 58\)"),
        ({"shapes": {"x_t": (8, 58)}}, r"t missing, here \(\)"),
        ({"machine": MACHINE | {"gpu": "H100"}}, "another machine: gpu H100, here NVIDIA L4"),
        ({"machine": MACHINE | {"torch": "2.12.0"}}, "torch 2.12.0, here 2.13.0"),
        ({"machine": MACHINE | {"driver": "1"}}, "driver 1, here missing"),
        ({"batch": (2, 8)}, "its smallest batch is 2, expected 1"),
        ({"parity": {}}, "never compared"),
        (
            {"parity": {"1": 0.001, "8": 0.03}},
            "its error is 0.03 of the spread, expected at most 0.02",
        ),
        ({"parity": {"1": float("nan")}}, "its error is nan"),
    ],
)
def test_each_difference_has_its_reason(change: dict[str, object], reason: str) -> None:
    assert_match(reason, incompatibility(replace(GOOD, **change), HERE))  # type: ignore[arg-type]


def assert_match(pattern: str, text: str | None) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


@SLOW_DISK
@given(st.sampled_from([f.name for f in fields(Requirements)]), words)
def test_no_requirement_may_differ(field: str, other: str) -> None:
    different: object = other
    if field == "shapes":
        different = {**HERE.shapes, other: (1,)}
    if field == "machines":
        different = {"tensorrt": {**MACHINE, "cuda": other}}
    assert incompatibility(GOOD, replace(HERE, **{field: different})) is not None  # type: ignore[arg-type]


@SLOW_DISK
@given(manifests)
def test_a_manifest_survives_the_disk(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest
) -> None:
    folder = tmp_path_factory.mktemp("artifact")
    artifacts.write(folder, manifest)
    assert artifacts.read(folder / artifacts.MANIFEST) == manifest


@SLOW_DISK
@given(manifests, manifests)
def test_one_request_one_folder(one: Manifest, other: Manifest) -> None:
    measured = {"files": {}, "parity": {}, "tolerance": 0.0}
    same = replace(one, **measured) == replace(other, **measured)  # type: ignore[arg-type]
    assert (artifacts.key(one) == artifacts.key(other)) == same


def test_weights_in_half_precision_hash_as_in_single_precision() -> None:
    net = nn.Linear(3, 3).half()
    before = artifacts.weights_hash(net)
    assert artifacts.weights_hash(net.float()) == before


def published(root: Path, content: bytes, manifest: Manifest = GOOD) -> Path:
    with artifacts.staging(root) as folder:
        (folder / "denoise.plan").write_bytes(content)
        files = {"denoise.plan": artifacts.file_hash(folder / "denoise.plan")}
        return artifacts.publish(folder, root, replace(manifest, files=files))


def test_published_artifacts_are_found_whole(tmp_path: Path) -> None:
    root = tmp_path / "engines"
    place = published(root, b"one")
    ((found, manifest),) = artifacts.stored(root)
    assert found == place
    assert isinstance(manifest, Manifest)
    assert manifest.title == "tensorrt fp16, batches 1 to 8"
    assert artifacts.verify(found, manifest) is None


def test_building_anew_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    published(tmp_path, b"one")
    place = published(tmp_path, b"two")
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert (place / "denoise.plan").read_bytes() == b"two"
    published(tmp_path, b"three", replace(GOOD, weights="c" * 64))
    assert len(list(artifacts.stored(tmp_path))) == 2


def test_what_fails_while_it_is_built_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), artifacts.staging(tmp_path) as folder:
        (folder / "denoise.plan").write_bytes(b"half of it")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found(tmp_path: Path) -> None:
    place = published(tmp_path, b"one")
    manifest = artifacts.read(place / artifacts.MANIFEST)
    (place / "denoise.plan").write_bytes(b"eno")
    assert artifacts.verify(place, manifest) == "its file denoise.plan is damaged"
    (place / "denoise.plan").unlink()
    assert artifacts.verify(place, manifest) == "its file denoise.plan is missing"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a list"),
        ('{"format": 0}', "not of format 1"),
        ('{"format": 1, "model": "x"}', "expected"),
    ],
)
def test_a_bad_manifest_is_reported_and_not_raised(tmp_path: Path, text: str, reason: str) -> None:
    place = published(tmp_path, b"one")
    (place / artifacts.MANIFEST).write_text(text)
    ((_, problem),) = artifacts.stored(tmp_path)
    assert isinstance(problem, str)
    assert reason in problem


def test_a_field_of_another_type_is_reported(tmp_path: Path) -> None:
    place = published(tmp_path, b"one")
    path = place / artifacts.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parity": [1]}))
    ((_, problem),) = artifacts.stored(tmp_path)
    assert isinstance(problem, str)


def test_where_engines_are_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FADA_ENGINES", raising=False)
    assert artifacts.default_folder() == tmp_path / "fada" / "engines"
    monkeypatch.setenv("FADA_ENGINES", str(tmp_path / "mine"))
    assert artifacts.default_folder() == tmp_path / "mine"
