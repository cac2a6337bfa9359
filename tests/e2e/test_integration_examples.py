"""The examples of docs/guide/integrations.md that need no package: Live Link and MSE by hand."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.server.fake_pipeline import BLUE_STEP
from tests.server.media_files import picture
from tests.server.service import FAKE, ROOT, Service, environment, running
from tests.server.stream_client import pcm

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_EXAMPLES = ROOT / "docs/examples"
# Of the packets: blend shapes in the order of Unreal Engine's plugin.
_JAW_OPEN, _COUNT = 17, 61


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running(FAKE) as service:
        yield service


def test_live_link_packets_reach_unreal(service: Service, tmp_path: Path) -> None:
    portrait, speech = tmp_path / "p.png", tmp_path / "speech.wav"
    portrait.write_bytes(picture())
    with wave.open(str(speech), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(pcm(0.6))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unreal:
        unreal.bind(("127.0.0.1", 0))
        unreal.settimeout(0.2)
        port = unreal.getsockname()[1]
        command = [sys.executable, str(_EXAMPLES / "live_link.py"), str(portrait), str(speech)]
        command += ["--url", service.url, "--unreal", f"127.0.0.1:{port}"]
        subprocess.run(command, env=environment({}), check=True, timeout=60)
        packets = list(received(unreal))
    assert len(packets) >= 15
    frames = [index for index, _ in packets]
    assert frames == list(range(len(frames)))
    for index, values in packets[: len(packets) // 8 * 8]:
        assert len(values) == _COUNT
        jaw = values[_JAW_OPEN] * 255 / BLUE_STEP
        assert jaw == pytest.approx(round(jaw), abs=1e-2), index
    assert max(values[_JAW_OPEN] for _, values in packets) > 0.3


def received(unreal: socket.socket) -> Iterator[tuple[int, tuple[float, ...]]]:
    while True:
        try:
            data = unreal.recv(4096)
        except TimeoutError:
            return
        assert struct.unpack_from("<I", data)[0] == 6 and data[4:5] == b"$"
        (length,) = struct.unpack_from("!i", data, 41)
        assert data[45 : 45 + length] == b"fada"
        index, _, rate, _, count = struct.unpack_from("!if2iB", data, 45 + length)
        assert (rate, count) == (25, _COUNT)
        yield index, struct.unpack_from(f"!{count}f", data, 45 + length + 17)


@pytest.mark.skipif(_CHROMIUM is None, reason="no chromium on the PATH")
def test_the_page_by_hand_plays_a_live_session_from_another_origin(tmp_path: Path) -> None:
    flags = [
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
    ]
    with (
        pages(tmp_path) as origin,
        running({**FAKE, "FADA_CORS_ORIGINS": origin}) as service,
        sync_playwright() as playwright,
    ):
        html = (_EXAMPLES / "mse.html").read_text()
        html = html.replace("SERVICE = location.origin", f'SERVICE = "{service.url}"')
        (tmp_path / "mse.html").write_text(html)
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=flags)
        page = browser.new_page()
        page.goto(f"{origin}/mse.html")
        page.click("#talk")
        page.wait_for_function("document.querySelector('video').currentTime > 0.5")
        assert page.evaluate("document.querySelector('video').videoWidth") == 512
        assert page.title() == "A talking avatar, by hand"
        browser.close()


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """The origin of a server of this folder's files."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
