"""The service's settings: environment variables ``FADA_*``, listed by ``--help``."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.errors import SetupError
from server.webrtc.offer import ice_server

CLIENT_SHARE = 0.75
_MIN_KEY_LENGTH = 16
SECRET = frozenset(
    {"api_keys", "ice_servers", "redis_url"}
)  # values that error messages must not repeat


class Settings(BaseSettings):
    """Read from the environment; raises pydantic's ``ValidationError`` for an invalid value."""

    model_config = SettingsConfigDict(env_prefix="FADA_", frozen=True)

    redis_url: str | None = Field(
        None,
        pattern=r"^(rediss?(\+sentinel)?|unix)://.+",
        description="URL of a Redis or Valkey server, or of its Sentinels; "
        "unset: `fada serve` starts its own",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("motion",),
        min_length=1,
        description="models to load, comma-separated, or a kind: motion, video-tiny, video; "
        "the first is the default",
    )
    weights: Path | None = Field(
        None,
        description="path of your own model, to load instead of the bundled ones: a file, "
        "or a folder for kind video",
    )
    model_name: str | None = Field(
        None,
        pattern=r"^[\w.-]{1,100}$",
        description="name of the model in FADA_WEIGHTS; unset: the name of its file",
    )
    pipeline: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="for developers: module:function that loads a pipeline by name",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="worker processes on this machine, which share its cores; "
        "unset: `fada serve` starts one per GPU, else one per core, 2 to 8, and `fada worker` uses "
        "all cores",
    )
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="GPUs, comma-separated, named as in CUDA_VISIBLE_DEVICES: workers take them in "
        "turn, one each; unset: all, where TensorRT is installed",
    )
    sessions_per_worker: int | None = Field(
        None,
        ge=1,
        le=256,
        description="maximum concurrent jobs of a worker; it may measure less for live sessions; "
        "unset: 8, or as many as a built engine takes at once",
    )
    engines_build: Literal["auto", "never", "only"] = Field(
        "auto",
        description="build engines for the GPU: auto: at the first start, and serve meanwhile; "
        "never: use those that are stored; only: serve on built ones alone",
    )
    max_jobs: int = Field(
        32, ge=1, le=10_000, description="maximum jobs, queued or running; beyond: busy"
    )
    max_upload_bytes: int = Field(
        64 << 20, ge=1, le=256 << 20, description="maximum size of a request's body"
    )
    data: Path | None = Field(
        None,
        description="folder that API and workers share, for uploads and kept videos beyond 4 MiB; "
        "unset: `fada serve` has one in the user's cache, others keep all in Redis",
    )
    data_bytes: int = Field(
        16 << 30, ge=0, description="bytes of FADA_DATA that uploads and kept videos may take"
    )
    redis_bytes: int | None = Field(
        None,
        ge=1,
        description="bytes of Redis that uploads and kept videos may take together; unset: a "
        "quarter of its maxmemory",
    )
    max_portrait_bytes: int = Field(20 << 20, ge=1, description="maximum size of a portrait file")
    max_audio_s: float = Field(
        1800.0, gt=0, le=86_400, description="maximum length of speech, seconds"
    )
    max_avatars: int = Field(
        128, ge=1, description="maximum avatars kept; the least recently used go first"
    )
    avatar_ttl_s: int = Field(
        86_400, ge=1, description="how long an unused avatar is kept, seconds"
    )
    max_videos: int = Field(32, ge=1, description="maximum videos of asynchronous jobs kept")
    job_ttl_s: int = Field(3_600, ge=1, description="how long a job's data is kept, seconds")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="API keys, comma-separated; unset: no key is required"
    )
    requests_per_minute: int = Field(
        0, ge=0, description="maximum requests per minute of a client (key or address); 0: no limit"
    )
    sessions_per_client: int = Field(
        0,
        ge=0,
        description="maximum concurrent live sessions of a client; 0: its share alone counts",
    )
    client_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of places and bytes that a client may hold of what all others leave; "
        "unset: 0.75, or 1 without keys on loopback",
    )
    keys_share: bool = Field(
        False, description="1: every key sees all jobs and avatars; 0: each key only its own"
    )
    max_connections: int = Field(1024, ge=0, description="maximum open connections; 0: no limit")
    connections_per_address: int = Field(
        128,
        ge=0,
        description="maximum open connections from one address except trusted proxies; 0: no limit",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="other origins whose pages may use the API, comma-separated; *: any"
    )
    hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="allowed Host names beside loopback ones, comma-separated; unset: none when "
        "listening on loopback, else any",
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="proxies whose X-Forwarded-For is trusted, comma-separated; *: any"
    )
    ice_servers: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="a STUN and a TURN server for WebRTC, comma-separated: stun:HOST:PORT, "
        "turn:USER:PASSWORD@HOST:PORT",
    )
    webrtc_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="inner networks that WebRTC clients may be in, comma-separated, such as "
        "192.168.0.0/16; unset: none, or on loopback this machine's own addresses",
    )
    encoder: Literal["auto", "x264", "openh264", "nvenc", "vp9", "av1"] = Field(
        "auto",
        description="video encoder: x264, openh264, nvenc, vp9 or av1; auto: nvenc where it takes "
        "less of the processor's time than x264, else x264",
    )
    label: str | None = Field(
        None, min_length=1, description="visible label in a corner of every frame, such as AI"
    )
    label_font: Path | None = Field(
        None,
        description="TrueType or OpenType file with the label's letters; unset: letters of ASCII",
    )
    c2pa_cert: Path | None = Field(
        None,
        description="PEM file with a signer's certificates: finished videos get a C2PA manifest",
    )
    c2pa_key: Path | None = Field(
        None, description="PEM file with the private key of the first certificate"
    )
    c2pa_timestamps: str | None = Field(
        None,
        pattern=r"^https?://.+",
        description="URL of a time stamp authority (RFC 3161) for C2PA manifests",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="format of log lines: text or json"
    )
    drain_s: float = Field(
        10.0, ge=0, description="how long running jobs may take to end on SIGTERM, seconds"
    )

    @field_validator(
        "models",
        "devices",
        "api_keys",
        "cors_origins",
        "hosts",
        "trusted_proxies",
        "ice_servers",
        "webrtc_networks",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        if value.strip() and not names:
            raise ValueError("expected at least one name; leave it unset for the default")
        return names

    @field_validator("api_keys")
    @classmethod
    def _can_be_sent(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            if not all("!" <= letter <= "~" for letter in key.get_secret_value()):
                raise ValueError("expected keys of visible ASCII characters")
            if len(key.get_secret_value()) < _MIN_KEY_LENGTH:
                raise ValueError(f"expected keys of at least {_MIN_KEY_LENGTH} characters")
        return keys

    @field_validator("ice_servers")
    @classmethod
    def _are_ice_servers(cls, servers: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for server in servers:
            ice_server(server.get_secret_value())
        return servers

    @field_validator("webrtc_networks")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network, strict=False)
        return networks


# Other FADA_* variables, read by other modules.
_OTHER_VARIABLES = ("FADA_ENGINES",)  # engines.artifacts


def check_names(environment: Mapping[str, str]) -> list[str]:
    """The ``FADA_*`` variables that are not settings, such as those that Kubernetes injects.

    Raises `SetupError` for one that looks like a misspelt setting: ``FADA_API_KEY`` would leave the
    service open.
    """
    known = [*(f"FADA_{name.upper()}" for name in Settings.model_fields), *_OTHER_VARIABLES]
    unknown = [
        name for name in environment
        if name.upper().startswith("FADA_") and name.upper() not in known
        and not name.startswith("FADA_TEST_")
    ]  # fmt: skip
    for name in unknown:
        for real in known:
            if _is_typo(name.upper(), real):
                raise SetupError(f"unknown setting {name}, did you mean {real}?")
    return unknown


def _is_typo(one: str, other: str) -> bool:
    """Whether inserting, deleting, replacing or swapping a letter turns ``one`` into ``other``."""
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
    """The help text: a line for each setting."""
    lines = ["settings (environment variables):"]
    for name, field in Settings.model_fields.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "unset" if default is None or default == "" else default
        lines.append(f"  FADA_{name.upper():<20} {field.description} [{shown}]")
    return "\n".join(lines)
