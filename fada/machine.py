"""What this machine has: processor, memory, NVIDIA's cards, and the versions that these need.

Only the standard library, so that `make serve` can ask before anything is installed:
``python fada/machine.py`` prints the extra for this machine. docs/guide/gpu.md has the sources.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CUDA = "13.0"  # of torch's build on PyPI, which pyproject.toml pins
MIN_DRIVER = 580  # of CUDA 13
# Compute capabilities of TensorRT for RTX 1.5, whose wheels are for x86-64; the standard TensorRT
# has the others.
RTX_CAPABILITIES = ("7.5", "8.6", "8.9", "12.0", "12.1")
_OLDEST_CAPABILITY = (7, 5)  # of torch's build as well
_TIMEOUT_S = 10.0
# Of those in /proc/cpuinfo, the ones that networks and drawing run faster with.
_INSTRUCTIONS = (
    "avx2", "avx512f", "avx512_bf16", "avx_vnni", "amx_bf16", "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """``instructions``: () where unknown."""

    name: str
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class GPU:
    """One card. ``capability``: CUDA's, like ``8.9``; ``driver``: like ``580.65.06``."""

    name: str
    capability: str
    memory_mib: int
    driver: str

    def problem(self) -> str | None:
        """Why our packages cannot use this card; None: they can."""
        if _numbers(self.driver) < (MIN_DRIVER,):
            return f"its driver is {self.driver}, expected {MIN_DRIVER} or later for CUDA {CUDA}"
        if _numbers(self.capability) < _OLDEST_CAPABILITY:
            return f"its compute capability is {self.capability}, expected 7.5 or later"
        return None

    def extra(self) -> str:
        """The extra of the distribution `fada` that uses this card."""
        if self.problem() is not None:
            return "serve"
        rtx = self.capability in RTX_CAPABILITIES and platform.machine() in ("x86_64", "AMD64")
        return "tensorrt" if rtx else "tensorrt-datacenter"


def processor() -> Processor:
    name, flags = _cpuinfo()
    return Processor(name, tuple(one for one in _INSTRUCTIONS if one in flags))


def _cpuinfo() -> tuple[str, set[str]]:
    """The processor's name and its flags, as far as Linux has them."""
    fields: dict[str, str] = {}
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags") or fields.get("Features") or ""
    return name, set(flags.split())


def memory_gb() -> float | None:
    """The machine's memory, or the container's if that is less; None: unknown."""
    sizes = [int(text) for text in (_text(Path("/sys/fs/cgroup/memory.max")),) if text.isdigit()]
    with suppress(ValueError, OSError, AttributeError):  # not on this system
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(sizes) / 1e9 if sizes else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def gpus(program: str = "nvidia-smi") -> tuple[list[GPU], str | None]:
    """The cards that the driver's ``program`` lists, and why it lists none.

    ([], None): there is no driver.
    """
    query = [program, "--query-gpu=name,compute_cap,memory.total,driver_version"]
    try:
        done = subprocess.run(
            [*query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError:
        return [], None
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"{program} failed: {error}"
    found = [gpu for line in done.stdout.splitlines() if (gpu := _gpu(line)) is not None]
    if found:
        return found, None
    said = (done.stdout + done.stderr).strip().splitlines() or ["no card"]
    return [], f"{program}: {said[0]}"


def extra(cards: Sequence[GPU]) -> str:
    """What to install for ``cards``: the extra of the first that can be used."""
    return next((one.extra() for one in cards if one.problem() is None), "serve")


def _gpu(line: str) -> GPU | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not _numbers(parts[1]):
        return None
    name, capability, memory, driver = parts
    return GPU(name, capability, int(memory) if memory.isdigit() else 0, driver)


def _numbers(version: str) -> tuple[int, ...]:
    """``580.65.06`` → (580, 65, 6); () for anything else."""
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


if __name__ == "__main__":
    print(extra(gpus()[0]))
