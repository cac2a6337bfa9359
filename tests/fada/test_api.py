"""`import fada`: the client's names, the version, and nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import fada_client
import pytest

import fada
from tests.fada.test_commands import fada as command
from tests.server.service import ROOT, environment
from tests.server.test_imports import HEAVY


def test_the_client_is_here_as_well() -> None:
    for name in fada_client.__all__:
        assert getattr(fada, name) is getattr(fada_client, name)
    assert set(fada_client.__all__) <= set(dir(fada))
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        _ = fada.Cleint


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, fada; early = 'httpx' in sys.modules; fada.Client; from fada import *\n"
        "print(early, AsyncClient.__name__, *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment({}), capture_output=True, text=True, check=True,
    )  # fmt: skip
    early, name, *loaded = done.stdout.split()
    assert (early, name) == ("False", "AsyncClient")
    assert not HEAVY & set(loaded)


def test_the_version_has_one_source() -> None:
    source = ROOT / "clients/python/fada_client/version.py"
    for folder in (ROOT, ROOT / "clients/python", ROOT / "model/weights"):
        table = tomllib.loads((folder / "pyproject.toml").read_text())
        assert table["project"]["dynamic"] == ["version"]
        assert (folder / table["tool"]["hatch"]["version"]["path"]).resolve() == source
    assert f'__version__ = "{fada_client.__version__}"' in source.read_text()
    done = command("--version")
    assert done.returncode == 0
    assert (
        done.stdout.splitlines()[0]
        == f"fada {fada_client.__version__}"
        == f"fada {fada.__version__}"
    )
