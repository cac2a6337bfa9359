"""The wheel `fada` needs the client of its own version."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SameVersionHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_data["dependencies"].append(f"fada-client=={self.metadata.version}")
