"""The page of the 3D head: what the service sends moves it, in a real browser."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from model.portrait.blendshapes import ACTIONS
from tests.server.media_files import sound
from tests.server.service import FAKE, ROOT, Service, running

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
needs_chromium = pytest.mark.skipif(
    _CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running(FAKE) as service:
        yield service


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 320, "height": 480}) as context:
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        assert not errors


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


def seen(page: Page) -> np.ndarray:
    shot = np.frombuffer(page.locator("#head").screenshot(), np.uint8)
    return np.asarray(cv2.imdecode(shot, cv2.IMREAD_COLOR)).astype(np.int16)


@needs_chromium
def test_the_head_speaks_what_it_is_given(service: Service, page: Page, tmp_path: Path) -> None:
    audio = tmp_path / "speech.flac"
    audio.write_bytes(sound(0.4))
    page.goto(f"{service.url}/static/head.html")
    page.locator("body[data-ready]").wait_for()
    rest = seen(page)
    assert rest.std() > 20  # there is a head
    page.set_input_files("#file", audio)
    page.click("#talk")
    page.get_by_text("Done.", exact=True).wait_for()
    spoken = seen(page)
    assert np.abs(spoken - rest).max() > 60  # the last frame's jaw is open
    assert page.locator("#problem").is_hidden()


@needs_chromium
def test_bare_the_head_is_live_on_nothing(service: Service, page: Page) -> None:
    with page.expect_websocket() as opened:
        page.goto(f"{service.url}/static/head.html?bare")
    opened.value.wait_for_event("framereceived", lambda text: '"motion"' in str(text))
    assert page.locator("#controls").is_hidden()
    corner = page.evaluate("() => getComputedStyle(document.getElementById('head')).background")
    assert "rgba(0, 0, 0, 0)" in corner


@needs_chromium
def test_bare_the_head_tries_again(service: Service, page: Page) -> None:
    problem = {"code": "busy", "detail": "all places are taken"}
    page.route(
        "**/avatars",
        lambda route: route.fulfill(
            status=429, content_type="application/problem+json", body=json.dumps(problem)
        ),
        times=1,
    )
    with page.expect_websocket() as opened:
        page.goto(f"{service.url}/static/head.html?bare")
    opened.value.wait_for_event("framereceived", lambda text: '"motion"' in str(text))


def test_the_head_has_every_action_and_stays_within_its_file() -> None:
    data = (ROOT / "server/static/head.glb").read_bytes()
    magic, version, size = struct.unpack_from("<4sII", data)
    assert (magic, version, size) == (b"glTF", 2, len(data))
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    binary = len(data) - 28 - length
    assert document["buffers"] == [{"byteLength": binary}]
    assert {node["name"] for node in document["nodes"]} == {"skin", "gums", "teeth", "eyes"}
    for mesh in document["meshes"]:
        assert mesh["extras"]["targetNames"] == list(ACTIONS)
        assert len(mesh["primitives"][0]["targets"]) == len(ACTIONS)
    for view in document["bufferViews"]:
        assert view["byteOffset"] + view["byteLength"] <= binary
    assert "MIT" in document["asset"]["copyright"]
