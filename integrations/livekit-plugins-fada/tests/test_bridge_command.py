"""The bridge as a process."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from conftest import KEY, Service
from helpers import run
from livekit.plugins.fada.bridge_command import add_arguments
from livekit.plugins.fada.bridge_command import run as run_bridge

SETTINGS = {"FADA_LIVEKIT_BRIDGE_KEY": "a-key", "FADA_LIVEKIT_HOSTS": "livekit.example"}
COMMAND = str(Path(sys.executable).with_name("fada-livekit-bridge"))


def environment(**settings: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("FADA_")}
    return {**own, **settings}


@pytest.mark.parametrize("missing", SETTINGS)
def test_it_does_not_start_without_its_settings(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**SETTINGS, missing: ""}.items():
        monkeypatch.setenv(name, value)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run_bridge(parser.parse_args([])) == 2
    assert capsys.readouterr().err == f"fada livekit-bridge: {missing} is not set\n"


def test_it_serves_with_its_key(service: Service) -> None:
    settings = {**SETTINGS, "FADA_API_URL": service.url, "FADA_API_KEY": KEY}

    async def ready(url: str, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
            return answer.status

    process = subprocess.Popen(
        [COMMAND, "--port", "0"],
        env=environment(**settings, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = next(word for line in process.stdout for word in line.split() if "http" in word)
        assert run(ready(f"{address}/ready", "another")) == 401
        assert run(ready(f"{address}/ready", "a-key")) == 200
    finally:
        process.terminate()
        process.wait(20)
