"""Settings: parsing, and their lists in the help and the guide."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.errors import SetupError
from server.settings import SECRET, Settings, check_names, describe

OPERATE = Path(__file__).parents[2] / "docs/guide/operate.md"


def default_of(name: str) -> str:
    default = Settings.model_fields[name].default
    return ",".join(default) if isinstance(default, tuple) else "" if default is None else default


def test_the_guide_lists_every_setting() -> None:
    rows = re.findall(r"^\| `FADA_(\w+)` \| `?([^|`]*)`? +\| (.*) \|$", OPERATE.read_text(), re.M)
    assert {name.lower(): (default.strip(), words) for name, default, words in rows} == {
        name: (str(default_of(name)), field.description)
        for name, field in Settings.model_fields.items()
    }


def test_help_lists_every_setting() -> None:
    text = describe()
    for name, field in Settings.model_fields.items():
        assert f"FADA_{name.upper()} " in text and str(field.description) in text


def test_lists_are_split_at_commas_and_keys_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FADA_API_KEYS", " first-of-two-keys, second-of-two-keys ,")
    monkeypatch.setenv("FADA_CORS_ORIGINS", "https://a.example")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == [
        "first-of-two-keys",
        "second-of-two-keys",
    ]
    assert settings.cors_origins == ("https://a.example",)
    assert "first" not in repr(settings)
    assert set(Settings.model_fields) >= SECRET
    monkeypatch.setenv("FADA_API_KEYS", "")
    assert Settings().api_keys == ()
    monkeypatch.setenv("FADA_API_KEYS", " , ")
    with pytest.raises(ValidationError, match="at least one name"):
        Settings()
    monkeypatch.setenv("FADA_API_KEYS", "0123456789abcde")
    with pytest.raises(ValidationError, match="at least 16 characters"):
        Settings()


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("FADA_API_KEY", "FADA_API_KEYS"),
        ("FADA_APIKEYS", "FADA_API_KEYS"),
        ("FADA_API_KYES", "FADA_API_KEYS"),
        ("FADA_ALI_KEYS", "FADA_API_KEYS"),
        ("FADA_CORS_ORIGIN", "FADA_CORS_ORIGINS"),
        ("fada_worker", "FADA_WORKERS"),
    ],
)
def test_misspelt_settings_are_rejected(name: str, real: str) -> None:
    with pytest.raises(SetupError, match=real):
        check_names({name: "x"})


def test_unknown_variables_are_only_reported() -> None:
    unknown = ["FADA_SERVICE_HOST", "FADA_PORT_8000_TCP", "FADA_API_SERVICE_PORT"]
    known = ["FADA_API_KEYS", "FADA_ENGINES", "FADA_TEST_DATA", "PATH"]
    assert check_names(dict.fromkeys([*unknown, *known], "x")) == unknown


@given(st.sampled_from(sorted(Settings.model_fields)), st.data())
def test_any_single_typo_is_detected(name: str, data: st.DataObject) -> None:
    real = f"FADA_{name.upper()}"
    at = data.draw(st.integers(5, len(real) - 1))
    letter = data.draw(st.sampled_from("ABCXYZ_"))
    rest = real[at + 2 :]
    slips = [
        real[:at] + letter + real[at:],
        real[:at] + real[at + 1 :],
        real[:at] + letter + real[at + 1 :],
        real[:at] + real[at + 1 : at + 2] + real[at] + rest,
    ]
    slip = data.draw(st.sampled_from(slips))
    if slip.removeprefix("FADA_").lower() in Settings.model_fields:
        assert check_names({slip: "x"}) == []
    else:
        with pytest.raises(SetupError):
            check_names({slip: "x"})


@pytest.mark.parametrize(
    "key", ["a b and some more", "ключ, который длинен", "tab\t!0123456789abc"]
)
def test_keys_that_no_header_can_hold_are_rejected(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("FADA_API_KEYS", key)
    with pytest.raises(ValidationError, match="visible ASCII"):
        Settings()
