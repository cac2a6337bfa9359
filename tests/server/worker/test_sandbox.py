"""Uploads are decoded in other processes, with the same result, and cannot harm the worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from media.decode import decode_audio
from media.fmp4 import SAMPLE_RATE
from model.portrait.image import load_picture
from server.errors import ServiceError
from server.worker.sandbox import Sandbox
from tests.server.media_files import encoded_sound, picture, sound

ROGUE = (sys.executable, str(Path(__file__).with_name("rogue_decoder.py")))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with closing(Sandbox()) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def rogue() -> Iterator[Sandbox]:
    """A sandbox whose decoders obey their upload."""
    with closing(Sandbox(ROGUE)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def confined() -> Iterator[Sandbox]:
    """The same under the limits of a real decoder."""
    with closing(Sandbox((*ROGUE, "confined"))) as sandbox:
        yield sandbox


def samples(sandbox: Sandbox, blob: bytes, max_s: float = 100.0) -> np.ndarray:
    return np.concatenate([b.output for b in sandbox.speech(blob, SAMPLE_RATE, max_s).blocks])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_equal_those_decoded_in_process(sandbox: Sandbox, kind: str) -> None:
    blob = picture(kind=kind, size=(640, 480))
    assert (sandbox.picture(blob).pixels == load_picture(blob)).all()


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg", "m4a", "webm"])
def test_sound_equals_that_decoded_in_process(sandbox: Sandbox, kind: str) -> None:
    blob = encoded_sound(2.0, kind)
    here = decode_audio(blob, SAMPLE_RATE, 100.0)
    there = sandbox.speech(blob, SAMPLE_RATE, 100.0)
    assert here.duration_s == there.duration_s
    for mine, theirs in zip(here.blocks, there.blocks, strict=True):
        assert (mine.output == theirs.output).all() and (mine.model == theirs.model).all()


@pytest.mark.parametrize(
    ("blob", "code"),
    [(b"", "empty_audio"), (b"no sound", "unsupported_media"), (sound(3.0), "too_large")],
)
def test_decoder_errors_keep_their_codes(sandbox: Sandbox, blob: bytes, code: str) -> None:
    with pytest.raises(ServiceError) as raised:
        samples(sandbox, blob, max_s=2.0)
    assert raised.value.code == code
    assert samples(sandbox, sound(1.0)).size == SAMPLE_RATE


def test_other_files_are_not_pictures(sandbox: Sandbox) -> None:
    with pytest.raises(ServiceError, match="not a readable picture") as raised:
        sandbox.picture(b"no picture")
    assert raised.value.code == "unsupported_media"


def test_concurrent_speeches_do_not_mix(sandbox: Sandbox) -> None:
    speeches = [sandbox.speech(sound(1.0 + n), SAMPLE_RATE, 100.0) for n in range(6)]
    lengths = [sum(len(b.output) for b in speech.blocks) for speech in speeches]
    assert lengths == [(1 + n) * SAMPLE_RATE for n in range(6)]


def test_dropping_a_speech_leaves_no_decoder(sandbox: Sandbox) -> None:
    speech = sandbox.speech(sound(60.0), SAMPLE_RATE, 100.0)
    next(speech.blocks)
    speech.blocks.close()
    template = psutil.Process(sandbox.process_id)
    waiting = 2
    for _ in range(200):
        if len(children := template.children()) <= waiting:
            break
        psutil.wait_procs(children, timeout=0.05)
    assert len(template.children()) <= waiting


@pytest.mark.parametrize(
    "deed", ["abort", "exit", "hang up", "garbage", "endless", "pickle", "wrong size", "cut short"]
)
def test_a_misbehaving_decoder_fails_its_own_upload_only(rogue: Sandbox, deed: str) -> None:
    with pytest.raises(ServiceError) as raised:
        rogue.picture(deed.encode())
    assert raised.value.code == "unsupported_media"
    with pytest.raises(ServiceError) as raised:
        samples(rogue, deed.encode(), max_s=1.0)
    assert raised.value.code == "unsupported_media"
    assert rogue.picture(b"good").pixels.shape == (1, 1, 3)


def test_a_bug_in_the_decoder_is_an_internal_error(rogue: Sandbox) -> None:
    with pytest.raises(ServiceError) as raised:
        rogue.picture(b"bug")
    assert raised.value.code == "internal_error"
    assert "secret" not in raised.value.detail


def test_a_killed_template_process_is_restarted(sandbox: Sandbox) -> None:
    psutil.Process(sandbox.process_id).kill()
    psutil.Process(sandbox.process_id).wait(10)
    assert sandbox.picture(picture()).pixels.shape == (96, 64, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep fewer of the limits")
@pytest.mark.parametrize(
    ("deed", "refused"),
    [
        ("open a file", "OSError"),
        ("open a socket", "OSError"),
        ("start a process", "BlockingIOError"),
        ("take 2 GB", "MemoryError"),
    ],
)
def test_a_decoder_can_do_nothing_but_decode(confined: Sandbox, deed: str, refused: str) -> None:
    with pytest.raises(ServiceError) as raised:
        confined.picture(deed.encode())
    assert raised.value.code == "unsupported_media"
    assert refused in raised.value.detail


def test_a_decoder_that_never_ends_is_killed(confined: Sandbox) -> None:
    with pytest.raises(ServiceError) as raised:
        confined.picture(b"spin")
    assert raised.value.code == "unsupported_media"


def test_decoders_die_with_their_worker(sandbox: Sandbox) -> None:
    other = Sandbox()
    family = [psutil.Process(other.process_id)]
    other.picture(picture())
    family += family[0].children()
    other.close()
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert not alive and len(gone) == len(family)
