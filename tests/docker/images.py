"""Parses Dockerfiles, and runs their installing stages under a directory.

There is no container engine in the tests: absolute paths are put under a root of their own, and
the base image's Python is the one that runs the tests.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server import metrics

ROOT = Path(__file__).resolve().parents[2]
PREFIXES = ("/opt/fada", "/src", "/var/cache/fada", "/var/lib/fada")

# Of the whole service, and of each process, by prometheus_client.
_SERVICE = {
    "fada_queue_jobs", "fada_live_places", "fada_workers", "fada_avatars",
    "fada_broker_memory_bytes", "fada_broker_memory_limit_bytes",
    "process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds",
}  # fmt: skip


def figures() -> set[str]:
    """The names of all samples under `/metrics`."""
    names = set(_SERVICE)
    for family in metrics._registry.collect():
        ends = ("_bucket", "_count", "_sum") if family.type == "histogram" else ("",)
        ends = ("_total",) if family.type == "counter" else ends
        names |= {family.name.removesuffix("_total") + end for end in ends}
    return names


@dataclass
class Stage:
    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        return [value for name, value in self.steps if name == instruction][-1]


def read(dockerfile: Path) -> dict[str, Stage]:
    """The stages by name; one without a name is called ``final``."""
    stages: dict[str, Stage] = {}
    stage = Stage("", "")
    for line in _lines(dockerfile.read_text()):
        instruction, _, value = line.partition(" ")
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            stage = stages[name or "final"] = Stage(name or "final", base)
        else:
            stage.steps.append((instruction, value.strip()))
    return stages


def _lines(text: str) -> Iterator[str]:
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    yield from (line for line in "\n".join(kept).replace("\\\n", " ").split("\n") if line.strip())


def chain(stages: Mapping[str, Stage], name: str) -> list[Stage]:
    """The stage and what it is made from, the oldest first."""
    stage = stages[name]
    return [*(chain(stages, stage.base) if stage.base in stages else []), stage]


def command(stages: Mapping[str, Stage], name: str, instruction: str) -> list[str]:
    """An ENTRYPOINT, CMD or HEALTHCHECK CMD of an image, in its exec form."""
    values = [v for s in chain(stages, name) for n, v in s.steps if n == instruction]
    text = values[-1]
    return list(json.loads(text[text.index("[") :]))


def sent(path: str) -> bool:
    """Whether `.dockerignore` lets a path of the checkout into the build: the last match says."""
    wanted = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.lstrip("!").removeprefix("**/")
        parts = Path(path).parts
        if "**/" in line:
            matches = any(fnmatch.fnmatch(part, pattern) for part in parts)
        else:
            upper = ["/".join(parts[: n + 1]) for n in range(len(parts))]
            matches = any(fnmatch.fnmatch(one, pattern) for one in upper)
        if matches:
            wanted = line.startswith("!")
    return wanted


def program(name: str) -> str | None:
    """A tool that pip brings lies beside the interpreter, whose folder need not be on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return shutil.which(name, path=path)


def install(dockerfile: Path, stage: str, root: Path, *, arguments: Mapping[str, str]) -> None:
    """Carry out COPY and RUN of the stage and of those before it, under ``root``."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(root)}
    environment |= {n: v for n, v in os.environ.items() if n.startswith("PIP_")}
    work = root
    for one in chain(read(dockerfile), stage):
        for instruction, value in one.steps:
            if instruction == "WORKDIR":
                work = root / value.lstrip("/")
                work.mkdir(parents=True, exist_ok=True)
            elif instruction == "ENV":
                environment |= dict(pair.split("=", 1) for pair in value.split())
            elif instruction == "ARG":
                name, _, default = value.partition("=")
                environment[name] = arguments.get(name, default)
            elif instruction == "COPY":
                _copy(value.split(), work)
            elif instruction == "RUN":
                subprocess.run(
                    ["sh", "-e", "-c", under(value, root)], cwd=work, env=environment, check=True
                )
            else:
                raise ValueError(f"{instruction} in an installing stage")


def under(text: str, root: Path) -> str:
    """The text with the image's absolute paths put under ``root``."""
    for prefix in PREFIXES:
        text = text.replace(prefix, f"{root}{prefix}")
    return text


def _copy(words: list[str], work: Path) -> None:
    *sources, target = words
    for source in sources:
        path = ROOT / source
        if not path.is_dir():
            if not sent(source):
                raise FileNotFoundError(f"{source} is kept out by .dockerignore")
            shutil.copy(path, work / target)
            continue
        for file in path.rglob("*"):
            name = file.relative_to(ROOT)
            if file.is_file() and sent(str(name)):
                place = work / target / file.relative_to(path)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place)
