"""The studio's main paths in Firefox, against the real service and the student that ships."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.e2e.firefox import ESCAPE, PROGRAM, Tab, firefox_tab
from tests.server.media_probe import probe
from tests.server.service import Service

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no Firefox on the PATH (Debian: apt-get install firefox-esr)"
)
VIDEO = "document.querySelector('video')"


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with firefox_tab() as tab:
        yield tab


@pytest.fixture
def page(tab: Tab, service: Service) -> Tab:
    """The studio as it is after loading, set to small videos."""
    tab.goto("about:blank")
    tab.errors.clear()
    tab.goto(service.url)
    tab.until("document.querySelector('#speak:enabled') !== null")
    tab.read(
        "(size => { size.value = '256'; size.dispatchEvent(new Event('change', {bubbles: true})) })"
        "(document.querySelector('[name=size]'))"
    )
    return tab


def played(page: Tab) -> float:
    return float(page.read(f"{VIDEO}.currentTime"))


def picture(page: Tab) -> np.ndarray:
    """What the video shows now, (64, 64, 4)."""
    shown = page.read(
        f"""(() => {{
            const canvas = new OffscreenCanvas(64, 64).getContext("2d");
            canvas.drawImage({VIDEO}, 0, 0, 64, 64);
            return [...canvas.getImageData(0, 0, 64, 64).data];
        }})()"""
    )
    return np.array(shown).reshape(64, 64, 4)


def badge(text: str) -> str:
    return f"document.querySelector('#badge').textContent.includes('{text}')"


def speaks_and_is_interrupted(page: Tab) -> None:
    page.until(f"{VIDEO}.currentTime > 0.5")
    page.until(badge("resting"))
    at_rest = picture(page)
    page.click("#say")
    page.until(badge("speaking"))
    began = played(page)
    page.until(f"{VIDEO}.currentTime > {began} + 1")
    assert np.abs(picture(page) - at_rest).max() > 8
    page.press(ESCAPE)
    page.until(badge("resting"))


def test_a_portrait_and_a_voice_of_ones_own_become_a_video(
    page: Tab, examples: Path, tmp_path: Path
) -> None:
    pcm, rate = soundfile.read(examples / "speech.wav")
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, pcm[: 2 * rate], rate)
    page.choose_file("#portrait-file", examples / "monalisa.jpg")
    page.choose_file("#voice-file", voice)
    page.until("document.querySelector('#own-portrait') !== null")
    page.click("#speak")
    page.until(f"{VIDEO}.currentTime > 0.2")
    first = picture(page)
    page.until(f"{VIDEO}.currentTime > 1")
    assert np.abs(picture(page) - first).max() > 8
    page.until(f"{VIDEO}.ended")
    seen = probe(page.download("#download"))
    assert seen.video_s == pytest.approx(2.0, abs=0.041)
    assert np.abs(seen.sound).max() > 0.05
    assert page.errors == []


def test_a_live_session_speaks_and_is_interrupted(page: Tab) -> None:
    page.click("#go-live")
    speaks_and_is_interrupted(page)
    page.click("#microphone")
    page.until(badge("speaking"))
    page.click("#end")
    assert np.abs(probe(page.download("#download")).sound).max() > 0.05
    assert page.errors == []


def test_a_live_session_runs_over_webrtc(page: Tab) -> None:
    page.click("#webrtc")
    page.click("#go-live")
    speaks_and_is_interrupted(page)
    assert page.read("document.querySelector('#webrtc').checked")
    page.click("#end")
    page.until("document.querySelector('#go-live') !== null")
    assert page.errors == []
