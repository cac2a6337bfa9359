"""What can be set from outside: environment variables named ``FADA_*``, listed by ``--help``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.errors import SetupError

_SHORTEST_KEY = 16
SECRET = frozenset({"api_keys", "redis_url"})  # their values must not be repeated


class Settings(BaseSettings):
    """Raises pydantic's ``ValidationError`` for a value out of range."""

    model_config = SettingsConfigDict(env_prefix="FADA_", frozen=True)

    redis_url: str | None = Field(
        None,
        pattern=r"^(rediss?|unix)://.+",
        description="Redis or Valkey to use; unset, `fada serve` starts one of its own",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("motion",),
        min_length=1,
        description="students to load, comma-separated, or a kind: motion, video-tiny, video; "
        "first: default",
    )
    weights: Path | None = Field(
        None,
        description="student of your own to load instead of those that ship: its file, "
        "or the folder of kind video",
    )
    model_name: str | None = Field(
        None,
        pattern=r"^[\w.-]{1,100}$",
        description="name of the student in FADA_WEIGHTS; unset: its file's",
    )
    pipeline: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="for developers: module:function that loads a pipeline by its name",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="worker processes that share this machine; "
        "unset: `fada serve` starts one a core, 2 to 8, and a `fada worker` is the only one",
    )
    sessions_per_worker: int = Field(
        8, ge=1, le=256, description="most jobs of a worker at once; live ones: what it measures"
    )
    max_jobs: int = Field(32, ge=1, le=10_000, description="jobs queued and running; more: busy")
    max_upload_bytes: int = Field(64 << 20, ge=1, le=256 << 20, description="one request's body")
    max_portrait_bytes: int = Field(20 << 20, ge=1, description="one portrait file")
    max_audio_s: float = Field(1800.0, gt=0, le=86_400, description="longest speech, seconds")
    max_avatars: int = Field(128, ge=1, description="avatars kept; the longest unused goes first")
    avatar_ttl_s: int = Field(86_400, ge=1, description="an unused avatar is kept this long")
    max_videos: int = Field(32, ge=1, description="videos of asynchronous jobs kept")
    job_ttl_s: int = Field(3_600, ge=1, description="what a job leaves behind is kept this long")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="keys that clients must send, comma-separated; unset: open to everybody"
    )
    requests_per_minute: int = Field(
        0, ge=0, description="requests a client (a key, or an address) may make; 0: any number"
    )
    sessions_per_client: int = Field(
        0, ge=0, description="live sessions that a client may hold at once; 0: any number"
    )
    keys_share: bool = Field(
        False, description="1: jobs and avatars are for every key; else for the key that made them"
    )
    max_connections: int = Field(1024, ge=0, description="connections open at once; 0: any number")
    connections_per_address: int = Field(
        128, ge=0, description="of them from one address, but for trusted proxies; 0: any number"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="other origins whose pages may use the API, comma-separated; *: every one"
    )
    hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="names the service answers to, comma-separated, besides loopback ones; unset: "
        "only those where it listens on loopback, else any",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="addresses whose X-Forwarded-For is believed, comma-separated; *: anyone's"
    )
    log_format: Literal["text", "json"] = Field("text", description="of log lines: text or json")
    drain_s: float = Field(10.0, ge=0, description="on SIGTERM, time for running jobs to end")

    @field_validator(
        "models", "api_keys", "cors_origins", "hosts", "trusted_proxies", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        if value.strip() and not names:
            raise ValueError("it names nothing; leave it unset to allow the default")
        return names

    @field_validator("api_keys")
    @classmethod
    def _can_be_sent(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            if not all("!" <= letter <= "~" for letter in key.get_secret_value()):
                raise ValueError("a key must be of visible ASCII characters")
            if len(key.get_secret_value()) < _SHORTEST_KEY:
                raise ValueError(f"a key must have at least {_SHORTEST_KEY} characters")
        return keys


# Read from the environment as well, by the modules named.
_ELSEWHERE = ("FADA_ENGINES",)  # engines.artifacts


def check_names(environment: Mapping[str, str]) -> list[str]:
    """The ``FADA_*`` variables that are no settings, such as those that Kubernetes injects.

    Raises `SetupError` for one that is a slip away from a setting: an API key that is not read
    would leave the door open.
    """
    known = [*(f"FADA_{name.upper()}" for name in Settings.model_fields), *_ELSEWHERE]
    unknown = [
        name for name in environment
        if name.upper().startswith("FADA_") and name.upper() not in known
        and not name.startswith("FADA_TEST_")
    ]  # fmt: skip
    for name in unknown:
        for real in known:
            if _one_slip(name.upper(), real):
                raise SetupError(f"there is no setting {name}; {real} is one")
    return unknown


def _one_slip(one: str, other: str) -> bool:
    """Whether one letter more, less or else, or two swapped, make ``one`` the ``other``."""
    shorter, longer = sorted((one, other), key=len)
    at = next(
        (i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter)
    )
    if len(longer) == len(shorter) + 1:
        return shorter[at:] == longer[at + 1 :]
    if len(longer) != len(shorter) or at == len(shorter):
        return False
    swapped = longer[at : at + 2] == shorter[at : at + 2][::-1]
    return shorter[at + 1 :] == longer[at + 1 :] or (
        swapped and shorter[at + 2 :] == longer[at + 2 :]
    )


def describe() -> str:
    """One line a setting, for ``--help``."""
    lines = ["settings (environment variables):"]
    for name, field in Settings.model_fields.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "unset" if default is None or default == "" else default
        lines.append(f"  FADA_{name.upper():<20} {field.description} [{shown}]")
    return "\n".join(lines)
