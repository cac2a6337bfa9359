"""FADA: a portrait and speech in, a talking video out while it is being made.

All of `fada_client` is here as well. It is imported when first used, so that the command `fada` and
its processes start without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fada_client import *  # noqa: F403


def __getattr__(name: str) -> Any:
    import fada_client

    if name == "__all__":
        return [*fada_client.__all__]
    if name in fada_client.__all__:
        return getattr(fada_client, name)
    raise AttributeError(f"module 'fada' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
