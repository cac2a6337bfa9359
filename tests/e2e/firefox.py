"""Firefox, driven over WebDriver BiDi, which it speaks by itself: no driver stands between."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PROGRAM = shutil.which("firefox-esr") or shutil.which("firefox")
ENTER, ESCAPE = "\ue007", "\ue00c"
_PREFERENCES = {
    "media.cubeb.force_mock_context": True,  # sound goes nowhere, also without a sound device
    "media.navigator.permission.disabled": True,
    "media.navigator.streams.fake": True,  # a microphone that hums
}
_WAIT_S = 60.0


@dataclass
class Tab:
    """A tab, and the errors of its pages' scripts."""

    socket: ClientConnection
    downloads: Path
    context: str = ""
    errors: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def call(self, method: str, **parameters: Any) -> Any:
        """Raises ``RuntimeError`` with Firefox's words if the command fails."""
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(_WAIT_S))
            if message.get("method") == "log.entryAdded":
                if message["params"]["level"] == "error":
                    self.errors.append(message["params"]["text"])
            elif message.get("id") == number:
                if message["type"] == "error":
                    raise RuntimeError(message["message"])
                return message["result"]

    def goto(self, url: str) -> None:
        self.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def read(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression, which may be a promise."""
        made = self._evaluate(f"(async () => JSON.stringify(await ({expression})))()")
        return json.loads(made.get("value", "null"))

    def until(self, condition: str) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not self.read(condition):
            assert time.monotonic() < deadline, (
                f"{condition}; {self.read('document.body.innerText')}"
            )
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """As a hand does it: a page may play sound from then on."""
        self._evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        origin = {"type": "element", "element": self._element(selector)}
        self._act(
            "pointer",
            [
                {"type": "pointerMove", "x": 0, "y": 0, "origin": origin},
                {"type": "pointerDown", "button": 0},
                {"type": "pointerUp", "button": 0},
            ],
        )

    def press(self, key: str) -> None:
        self._act("key", [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}])

    def choose_file(self, selector: str, path: Path) -> None:
        element = self._element(selector)
        self.call("input.setFiles", context=self.context, element=element, files=[str(path)])

    def download(self, selector: str) -> bytes:
        """Click a link and take the file that it gives."""
        self.until(f"document.querySelector({selector!r})?.checkVisibility() ?? false")
        self.click(selector)
        deadline = time.monotonic() + _WAIT_S
        while True:
            files = list(self.downloads.iterdir())
            # What is not complete yet has a file "….part" beside it.
            if len(files) == 1 and files[0].suffix != ".part" and files[0].stat().st_size:
                data = files[0].read_bytes()
                files[0].unlink()
                return data
            assert time.monotonic() < deadline, files
            time.sleep(0.05)

    def _act(self, kind: str, actions: Sequence[dict[str, Any]]) -> None:
        source = {"type": kind, "id": kind, "actions": actions}
        self.call("input.performActions", context=self.context, actions=[source])

    def _element(self, selector: str) -> dict[str, str]:
        return {"sharedId": self._evaluate(f"document.querySelector({selector!r})")["sharedId"]}

    def _evaluate(self, expression: str) -> Any:
        target = {"context": self.context}
        made = self.call("script.evaluate", expression=expression, target=target, awaitPromise=True)
        assert made["type"] == "success", made
        return made["result"]


@contextmanager
def firefox_tab() -> Iterator[Tab]:
    """Start Firefox with a fresh profile and open a tab."""
    assert PROGRAM is not None
    with (
        tempfile.TemporaryDirectory() as profile,
        tempfile.TemporaryDirectory() as downloads,
        tempfile.TemporaryFile("w+") as log,
    ):
        lines = (f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in _PREFERENCES.items())
        (Path(profile) / "user.js").write_text("\n".join(lines))
        command = [PROGRAM, "--headless", "--no-remote", "--profile", profile]
        with subprocess.Popen(
            [*command, "--remote-debugging-port", "0"], stdout=log, stderr=log
        ) as process:
            try:
                with connect(f"{_address(process, log)}/session", max_size=None) as socket:
                    tab = Tab(socket, Path(downloads))
                    tab.call("session.new", capabilities={})
                    allowed = {"type": "allowed", "destinationFolder": downloads}
                    tab.call("browser.setDownloadBehavior", downloadBehavior=allowed)
                    tab.call("session.subscribe", events=["log.entryAdded"])
                    tab.context = tab.call("browsingContext.getTree")["contexts"][0]["context"]
                    yield tab
            finally:
                process.terminate()


def _address(process: subprocess.Popen[bytes], log: Any) -> str:
    deadline = time.monotonic() + _WAIT_S
    while process.poll() is None and time.monotonic() < deadline:
        log.seek(0)
        if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", text := log.read()):
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"Firefox does not listen: {text}")
