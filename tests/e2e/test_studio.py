"""The studio page in a real browser, against the real service and the student that ships."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, Page, WebSocket, sync_playwright

from media.fmp4 import FragmentedMP4Muxer
from tests.server.media_probe import probe
from tests.server.service import FAKE, Service, running
from tests.server.tcp_proxy import proxy_to

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]
_WAIT_S = 60.0

pytestmark = pytest.mark.skipif(
    _CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@dataclass
class Studio:
    """The page, and the errors that the browser reported."""

    page: Page
    errors: list[str] = field(default_factory=list)

    def until(self, condition: str) -> None:
        """Wait for a JavaScript expression to hold (the page's policy forbids eval within it)."""
        deadline = time.monotonic() + _WAIT_S
        while not self.page.evaluate(f"() => {condition}"):
            assert time.monotonic() < deadline, f"{condition}; {self.page.inner_text('body')}"
            self.page.wait_for_timeout(50)

    def read(self, expression: str) -> Any:
        return self.page.evaluate(f"() => {expression}")

    def picture(self) -> np.ndarray[Any, Any]:
        """What the video shows now, (64, 64, 4)."""
        shown = self.page.evaluate(
            """() => {
                const canvas = new OffscreenCanvas(64, 64).getContext("2d");
                canvas.drawImage(document.querySelector("video"), 0, 0, 64, 64);
                return [...canvas.getImageData(0, 0, 64, 64).data];
            }"""
        )
        return np.array(shown).reshape(64, 64, 4)

    def download(self) -> bytes:
        """Wait for the finished video and take it."""
        self.page.wait_for_selector("#download", timeout=_WAIT_S * 1000)
        with self.page.expect_download() as download:
            self.page.click("#download")
        return Path(download.value.path()).read_bytes()


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[Studio]:
    """One window for most tests: a new one starts processes."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        studio = Studio(context.new_page())
        studio.page.on("pageerror", lambda error: studio.errors.append(str(error)))
        studio.page.on(
            "console",
            lambda message: studio.errors.append(message.text) if message.type == "error" else None,
        )
        yield studio


@pytest.fixture
def studio(window: Studio, service: Service) -> Studio:
    """The page as it is after loading, set to small videos."""
    window.page.goto("about:blank")
    window.errors.clear()
    window.page.goto(service.url)
    window.page.wait_for_selector("#speak:enabled")
    window.page.select_option("[name=size]", "256")
    return window


@pytest.fixture
def short_speech(examples: Path, tmp_path: Path) -> Path:
    pcm, rate = soundfile.read(examples / "speech.wav")
    path = tmp_path / "short.wav"
    soundfile.write(path, pcm[: 2 * rate], rate)
    return path


def test_a_kept_video_has_its_length_and_seeks(
    studio: Studio, service: Service, examples: Path
) -> None:
    files = {
        "portrait": (examples / "monalisa.jpg").read_bytes(),
        "audio": (examples / "speech.wav").read_bytes(),
    }
    with service.client() as client:
        headers = {"Prefer": "respond-async"}
        job = client.post("/animate", files=files, data={"size": "128"}, headers=headers)
        address = f"{job.headers['location']}/video"
        client.get(address)  # until it is finished
    seen = studio.page.evaluate(
        """async (address) => {
            const video = document.createElement("video");
            video.src = address;
            await new Promise((resolve, reject) => {
                video.onloadedmetadata = resolve;
                video.onerror = () => reject(video.error.message);
            });
            const seen = [video.duration, video.seekable.end(0)];
            for (const at of [6, 1.5]) {
                video.currentTime = at;
                await new Promise((resolve) => { video.onseeked = resolve; });
                seen.push(video.currentTime);
            }
            return seen;
        }""",
        address,
    )
    assert seen == [pytest.approx(6.56, abs=0.05)] * 2 + [6, 1.5]


def test_a_portrait_speaks_and_its_video_can_be_kept(studio: Studio, examples: Path) -> None:
    studio.page.click("label:has([value=astronaut])")
    studio.page.click("#speak")
    studio.until("document.querySelector('video').currentTime > 0.2")
    first = studio.picture()
    studio.until("document.querySelector('video').currentTime > 1")
    assert np.abs(studio.picture() - first).max() > 8
    assert studio.read("document.querySelector('video').webkitAudioDecodedByteCount") > 0
    assert "ms" in studio.page.inner_text("#first")
    seen = probe(studio.download())
    seconds = soundfile.info(examples / "speech.wav").duration
    assert seen.video_s == pytest.approx(seconds, abs=0.041)
    assert seen.sound_s == pytest.approx(seconds, abs=0.001)
    assert max(seen.width, seen.height) == 256
    assert studio.errors == []


def test_a_kept_seed_gives_the_same_video(studio: Studio, short_speech: Path) -> None:
    studio.page.set_input_files("#voice-file", short_speech)
    studio.page.click("#speak")
    first = studio.download()
    studio.until("document.querySelector('video').ended")
    studio.page.click("#keep-seed")
    assert studio.page.input_value("[name=seed]") == studio.page.inner_text("#keep-seed")
    studio.page.click("#speak")
    assert studio.download() == first


def test_a_recording_is_animated(studio: Studio) -> None:
    studio.page.click("#record")
    studio.until("document.querySelector('#record').textContent.includes('1 s')")
    studio.page.click("#record")
    studio.page.wait_for_selector("#own-voice")
    studio.page.click("#speak")
    assert probe(studio.download()).video_s > 0.5
    assert studio.errors == []


def test_dropped_files_are_used(studio: Studio, examples: Path, short_speech: Path) -> None:
    for path, kind in ((examples / "monalisa.jpg", "image/jpeg"), (short_speech, "audio/wav")):
        studio.page.evaluate(
            """([name, type, text]) => {
                const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([bytes], name, { type }));
                dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
            }""",
            [path.name, kind, base64.b64encode(path.read_bytes()).decode()],
        )
    studio.page.wait_for_selector("#own-portrait")
    assert studio.page.inner_text("#own-voice") == short_speech.name
    studio.page.click("#speak")
    assert probe(studio.download()).video_s == pytest.approx(2.0, abs=0.041)
    assert studio.errors == []


def test_a_video_is_verified_by_its_page(studio: Studio, tmp_path: Path) -> None:
    page = studio.page
    page.click("header a:has-text('Verify')")
    path = tmp_path / "kept.mp4"
    muxer = FragmentedMP4Muxer(64, 64, 25)
    fragment = muxer.add([np.zeros((64, 64, 3), np.uint8)] * 8, np.zeros(15_360, np.float32))
    path.write_bytes(muxer.init_segment() + fragment)
    page.set_input_files("#file", path)
    page.wait_for_selector("#report:not([hidden])")
    assert page.inner_text("#verdict") == "kept.mp4: claimed, unsigned"
    assert "says that AI made it" in page.inner_text("#meaning")
    assert page.locator("#marks tr").count() == 3
    assert "trainedAlgorithmicMedia" in page.inner_text("#marks tr:first-child")
    path.write_bytes(b"no video")
    page.set_input_files("#file", path)
    page.wait_for_selector("#problem:not([hidden])")
    assert "no video" in page.inner_text("#problem")
    assert [error for error in studio.errors if "415" not in error] == []


def test_escape_stops_and_keeps_the_video_so_far(studio: Studio) -> None:
    studio.page.select_option("[name=size]", "1024")
    studio.page.press("#speak", "Enter")
    studio.until("document.querySelector('video').currentTime > 0.1")
    assert studio.read("document.activeElement.id") == "stop"
    studio.page.keyboard.press("Escape")
    studio.page.wait_for_selector("#speak")
    assert studio.read("document.activeElement.id") == "speak"
    assert 0.2 < probe(studio.download()).video_s < 6.5
    assert studio.page.is_hidden("#problem")


def test_a_picture_without_a_face_shows_an_error_and_the_next_works(
    studio: Studio, examples: Path, tmp_path: Path, short_speech: Path
) -> None:
    no_picture = tmp_path / "portrait.png"
    no_picture.write_bytes(b"not a picture")
    studio.page.set_input_files("#portrait-file", no_picture)
    studio.page.wait_for_selector("#problem")
    assert "picture" in studio.page.inner_text("#problem")
    assert studio.page.is_hidden("#own-portrait")
    studio.page.set_input_files("#voice-file", short_speech)
    studio.page.set_input_files("#portrait-file", examples / "monalisa.jpg")
    studio.page.wait_for_selector("#own-portrait")
    assert studio.page.is_hidden("#problem")
    studio.page.click("#speak")
    assert probe(studio.download()).video_s == pytest.approx(2.0, abs=0.041)


def test_an_evicted_avatar_is_created_again(
    studio: Studio, service: Service, short_speech: Path
) -> None:
    studio.page.set_input_files("#voice-file", short_speech)
    with studio.page.expect_response("**/avatars") as made:
        studio.page.click("#speak")
    studio.download()
    with service.client() as client:
        assert client.delete(f"/avatars/{made.value.json()['avatar_id']}").status_code == 204
    with studio.page.expect_response("**/avatars") as again:
        studio.page.click("#speak")
    assert again.value.status == 201
    studio.download()
    assert studio.page.is_hidden("#problem")


def test_video_parsing_does_not_depend_on_chunking(studio: Studio, short_speech: Path) -> None:
    cuts = studio.page.evaluate(
        """async () => {
            const { FragmentSplitter, mimeOf } = await import("/static/mp4.js");
            const form = new FormData();
            for (const [field, name] of [["portrait", "presenter.jpg"], ["audio", "speech.wav"]])
                form.set(field, await (await fetch(`/static/examples/${name}`)).blob(), name);
            form.set("size", "128");
            const answer = await fetch("/animate", { method: "POST", body: form });
            const video = new Uint8Array(await answer.arrayBuffer());
            return [7, 997, 65536, video.length].map((size) => {
                const splitter = new FragmentSplitter();
                const segments = [];
                for (let at = 0; at < video.length; at += size)
                    segments.push(...splitter.push(video.subarray(at, at + size)));
                const whole = segments.flatMap(({ bytes }) => bytes.length);
                return JSON.stringify([segments.map(({ kind }) => kind), whole,
                    mimeOf(segments[0].bytes)]);
            });
        }"""
    )
    assert len(set(cuts)) == 1
    assert cuts[0].startswith('[["init","fragment","fragment"')
    assert "avc1." in cuts[0]


@dataclass
class Wire:
    """The text messages of a live session, as the browser sees them."""

    sent: list[dict[str, Any]] = field(default_factory=list)
    received: list[dict[str, Any]] = field(default_factory=list)

    def listen(self, page: Page) -> None:
        def opened(socket: WebSocket) -> None:
            socket.on("framesent", lambda data: _note(self.sent, data))
            socket.on("framereceived", lambda data: _note(self.received, data))

        page.on("websocket", opened)

    def got(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.received if message["type"] == kind]


def _note(messages: list[dict[str, Any]], data: str | bytes) -> None:
    if isinstance(data, str):
        messages.append(json.loads(data))


def go_live(studio: Studio) -> Wire:
    wire = Wire()
    wire.listen(studio.page)
    studio.page.click("#go-live")
    studio.until("document.querySelector('video').currentTime > 0.5")
    return wire


def badge(text: str) -> str:
    return f"document.querySelector('#badge').textContent.includes('{text}')"


def test_a_live_session_rests_speaks_is_interrupted_and_ends(studio: Studio) -> None:
    wire = go_live(studio)
    studio.until(badge("resting"))
    at_rest = studio.picture()
    studio.page.click("#say")
    studio.until(badge("speaking"))
    began = studio.read("document.querySelector('video').currentTime")
    studio.until(f"document.querySelector('video').currentTime > {began} + 1")
    assert np.abs(studio.picture() - at_rest).max() > 8
    studio.page.press("[name=audio_cfg]", "ArrowRight")
    studio.page.select_option("#state", "listening")
    studio.page.keyboard.press("Escape")
    studio.until(badge("resting"))
    studio.page.click("#end")
    seen = probe(studio.download())
    done = wire.got("done")[0]
    assert seen.video_s == pytest.approx(done["duration_s"], abs=0.041)
    assert [m["type"] for m in wire.sent] == ["start", "update", "state", "interrupt", "end"]
    assert wire.sent[2]["state"] == "listening"
    assert wire.sent[1]["audio_cfg"] == pytest.approx(wire.sent[0]["audio_cfg"] + 0.1)
    assert len(wire.got("interrupted")) == 1
    indices = [fragment["index"] for fragment in wire.got("fragment")]
    assert indices == list(range(len(indices)))
    assert np.abs(seen.sound).max() > 0.05
    assert studio.errors == []


def test_a_live_session_outlives_its_connection(studio: Studio, service: Service) -> None:
    with proxy_to(service.url) as proxy:
        studio.page.goto(proxy.url)
        studio.page.wait_for_selector("#speak:enabled")
        studio.page.select_option("[name=size]", "256")
        wire = go_live(studio)
        studio.page.click("#say")
        studio.until(badge("speaking"))
        proxy.cut()
        began = studio.read("document.querySelector('video').currentTime")
        studio.until(f"document.querySelector('video').currentTime > {began} + 2")
        studio.page.click("#end")
        seen = probe(studio.download())
    assert [m["type"] for m in wire.sent] == ["start", "resume", "end"]
    assert len(wire.got("ready")) == len(wire.got("resumed")) == 1
    assert seen.video_s == pytest.approx(wire.got("done")[0]["duration_s"], abs=0.041)
    assert np.diff(seen.times_s) == pytest.approx(0.04)
    studio.page.goto("about:blank")


def test_a_live_session_repeats_the_microphone_without_an_echo(studio: Studio) -> None:
    go_live(studio)
    studio.page.click("#microphone")
    studio.until(badge("speaking"))
    assert studio.read("document.querySelector('video').muted")
    assert studio.page.get_attribute("#microphone", "aria-pressed") == "true"
    studio.page.click("#microphone")
    studio.until(badge("resting"))
    assert not studio.read("document.querySelector('video').muted")
    studio.page.click("#end")
    assert np.abs(probe(studio.download()).sound).max() > 0.01  # the fake device beeps
    assert studio.errors == []


def test_a_live_session_runs_over_webrtc(studio: Studio) -> None:
    wire = Wire()
    wire.listen(studio.page)
    studio.page.check("#webrtc")
    studio.page.click("#go-live")
    studio.until("document.querySelector('video').currentTime > 0.5")
    studio.until(badge("resting"))
    at_rest = studio.picture()
    studio.page.click("#say")
    studio.until(badge("speaking"))
    began = studio.read("document.querySelector('video').currentTime")
    studio.until(f"document.querySelector('video').currentTime > {began} + 1")
    assert np.abs(studio.picture() - at_rest).max() > 8
    studio.page.keyboard.press("Escape")
    studio.until(badge("resting"))
    studio.page.click("#microphone")
    studio.until(badge("speaking"))  # the fake device beeps
    studio.page.click("#end")
    studio.page.wait_for_selector("#go-live")
    assert wire.sent == []
    assert studio.page.is_checked("#webrtc")
    assert studio.errors == []


def test_without_webrtc_a_live_session_takes_the_websocket(studio: Studio) -> None:
    problem = {"code": "not_found", "detail": "WebRTC needs aiortc: pip install 'fada[webrtc]'"}
    studio.page.route(
        "**/webrtc?*",
        lambda route: route.fulfill(
            status=404, content_type="application/problem+json", body=json.dumps(problem)
        ),
    )
    studio.page.check("#webrtc")
    wire = go_live(studio)
    assert [message["type"] for message in wire.sent] == ["start"]
    assert not studio.page.is_checked("#webrtc")
    studio.page.click("#end")
    studio.download()


def test_a_live_session_returns_to_the_live_edge_after_a_stall(studio: Studio) -> None:
    go_live(studio)
    studio.until("document.querySelector('video').currentTime > 2.5")
    studio.page.evaluate("() => { document.querySelector('video').currentTime = 0.1; }")
    studio.until("document.querySelector('video').currentTime > 2.5")
    studio.until("parseFloat(document.querySelector('#lead').textContent) < 1")
    studio.page.click("#end")
    studio.download()
    assert studio.errors == []


@pytest.mark.slow
def test_a_busy_service_shows_an_error(browser: Browser, examples: Path) -> None:
    with (
        running({"FADA_SESSIONS_PER_WORKER": "1", "FADA_WORKERS": "1"}) as service,
        browser.new_context() as first,
        browser.new_context() as second,
    ):
        studios = [Studio(context.new_page()) for context in (first, second)]
        for studio in studios:
            studio.page.goto(service.url)
            with studio.page.expect_response("**/avatars"):
                studio.page.click("label:has([value=astronaut])")
            studio.page.select_option("[name=size]", "256")
        go_live(studios[0])
        studios[1].page.click("#go-live")
        studios[1].page.wait_for_selector("#problem")
        assert "1" in studios[1].page.inner_text("#problem")
        assert studios[1].page.is_visible("#go-live")
        studios[1].page.click("label:has([value=monalisa])")
        studios[1].page.click("#go-live")  # waits for its portrait, behind the live session
        studios[1].page.wait_for_selector("#stop")
        studios[1].page.keyboard.press("Escape")
        studios[1].page.wait_for_selector("#go-live")
        assert studios[1].page.is_hidden("#problem")
        shown = studios[0].read("document.querySelector('video').currentTime")
        studios[0].until(f"document.querySelector('video').currentTime > {shown} + 0.5")


@pytest.mark.slow
def test_each_latent_space_gets_its_own_avatar(browser: Browser, short_speech: Path) -> None:
    settings = {"FADA_MODELS": "motion-fast,video-tiny", "FADA_WORKERS": "1"}
    with running(settings) as service, browser.new_context() as context:
        studio = Studio(context.new_page())
        studio.page.goto(service.url)
        studio.page.wait_for_selector("#speak:enabled")
        studio.page.set_input_files("#voice-file", short_speech)
        for model in ("video-tiny", "motion-fast", "video-tiny"):
            studio.page.select_option("[name=model]", model)
            studio.page.select_option("[name=size]", "256")
            studio.page.click("#speak")
            assert probe(studio.download()).video_s == pytest.approx(2.0, abs=0.041)
            assert studio.page.is_hidden("#problem")


def test_the_page_asks_for_an_api_key_and_keeps_it(browser: Browser) -> None:
    with (
        running({**FAKE, "FADA_API_KEYS": "o/ther+key-of-16"}) as service,
        browser.new_context() as context,
    ):
        studio = Studio(context.new_page())
        page = studio.page
        page.goto(service.url)
        page.fill("#key", "wrong")
        assert page.is_disabled("#speak")
        page.keyboard.press("Enter")
        page.wait_for_selector("#problem")
        assert "unknown" in page.inner_text("#problem")
        page.fill("#key", "o/ther+key-of-16")
        page.keyboard.press("Enter")
        page.wait_for_selector("#speak:enabled")
        assert page.is_hidden("#key-form") and page.is_hidden("#problem")
        page.select_option("[name=size]", "256")
        go_live(studio)  # the WebSocket takes the key as well
        page.reload()
        page.wait_for_selector("#speak:enabled")
        assert page.is_hidden("#key-form")


@pytest.fixture(scope="module")
def phone(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True) as context:
        yield context.new_page()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(phone: Page, service: Service, scheme: Any) -> None:
    phone.emulate_media(color_scheme=scheme)
    phone.goto(service.url)
    phone.wait_for_selector("#speak:enabled")
    assert phone.is_hidden("#key-form")
    assert phone.evaluate("() => document.documentElement.scrollWidth") <= 360
    lightness = phone.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (int(lightness[4:].split(",")[0]) < 128) == (scheme == "dark")


def test_the_page_loads_nothing_from_other_origins(phone: Page, service: Service) -> None:
    asked: list[str] = []
    phone.on("request", lambda request: asked.append(request.url))
    answer = phone.goto(service.url)
    assert answer is not None
    phone.wait_for_selector("#speak:enabled")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert asked and all(url.startswith((service.url, "blob:")) for url in asked)


def test_unknown_files_are_not_found(service: Service) -> None:
    with service.client() as client:
        for path in ("/static/nothing.js", "/static/%2e%2e/app.py", "/static/"):
            answer = client.get(path)
            assert answer.status_code == 404, path
            assert answer.json()["code"] == "not_found"
