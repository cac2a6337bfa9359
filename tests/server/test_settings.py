"""What can be set is listed where people look for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import SECRET, Settings, describe

README = Path(__file__).parents[2] / "README.md"


def default_of(name: str) -> str:
    default = Settings.model_fields[name].default
    return ",".join(default) if isinstance(default, tuple) else "" if default is None else default


def test_the_readme_lists_every_setting_as_it_is() -> None:
    rows = re.findall(r"^\| `FADA_(\w+)` \| `?([^|`]*)`? +\| (.*) \|$", README.read_text(), re.M)
    assert {name.lower(): (default.strip(), words) for name, default, words in rows} == {
        name: (str(default_of(name)), field.description)
        for name, field in Settings.model_fields.items()
    }


def test_help_lists_every_setting() -> None:
    text = describe()
    for name, field in Settings.model_fields.items():
        assert f"FADA_{name.upper()} " in text and str(field.description) in text


def test_lists_are_cut_at_commas_and_keys_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FADA_API_KEYS", " first, second ,")
    monkeypatch.setenv("FADA_CORS_ORIGINS", "https://a.example")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["first", "second"]
    assert settings.cors_origins == ("https://a.example",)
    assert "first" not in repr(settings)
    assert set(Settings.model_fields) >= SECRET
    monkeypatch.setenv("FADA_API_KEYS", "")
    assert Settings().api_keys == ()


@pytest.mark.parametrize("key", ["a b", "ключ", "tab\t!"])
def test_a_key_that_no_header_can_hold(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("FADA_API_KEYS", key)
    with pytest.raises(ValidationError, match="visible ASCII"):
        Settings()
