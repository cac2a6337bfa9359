"""FADA: a portrait and speech in, a talking video out while it is being made.

`load` makes videos in this process. All of `fada_client`, for a service, is here as well. Both are
imported when first used, so that the command `fada` and its processes start without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fada_client import *  # noqa: F403

    from fada.local import LocalClient as LocalClient
    from fada.local import RawFrame as RawFrame

_LOCAL = ("LocalClient", "RawFrame")


def load(model: str | None = None, *, weights: str | Path | None = None) -> LocalClient:
    """A student in this process, ready to `animate` and `stream`: the client's verbs, no service.

    Close it, or use it as a context manager. ``model``: a name, as `Client.models` lists them, or a
    kind; ``None``: the default student. ``weights``: a file with a student of your own. Other
    settings come from the environment (``FADA_*``). Raises `InvalidOption` for a student that
    cannot be had, ``ModuleNotFoundError`` without the extra `serve`.
    """
    return _local("load")(model, weights=weights)


def _local(name: str) -> Any:
    try:
        from fada import local  # torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"fada.{name} needs the extra \"serve\": pip install 'fada[serve]' "
            f"({error.name} is not installed)",
            name=error.name,
        ) from error
    return getattr(local, name)


def __getattr__(name: str) -> Any:
    if name in _LOCAL:
        return _local(name)
    import fada_client

    if name == "__all__":
        return [*fada_client.__all__]
    if name in fada_client.__all__:
        return getattr(fada_client, name)
    raise AttributeError(f"module 'fada' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
