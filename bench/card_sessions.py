"""On paper: how many live motion sessions an L4, an RTX 4090 and an H100 bear, and what limits
them.

    python bench/card_sessions.py

Nothing is run on a GPU. The network's time follows from its counted FLOPs and bytes
(`bench/flops.py`) at a stated share of the card's rates; the processor's from
docs/experiments/performance.md. Each assumption is a constant here, with its source;
docs/guide/gpu.md has the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.flops import CARDS, Card, Cost, count
from engines.example_inputs import example_model
from engines.export import conditions_of
from model.audio.log_mel import HOP
from model.types import FPS

STEPS = 2  # of motion-fast
BATCH = 64  # windows at once: the engine's most
WINDOW_MS = 1e3 * HOP / FPS
SIDE = 512
CORES = 16  # beside the card
FULL = 0.8  # a worker that needs more of its time admits nothing (server/worker/capacity.py)

# Assumed: small layers reach a tenth of the roofline, and no kernel of a CUDA graph takes less.
UTILISATION, KERNEL_MS = 0.1, 0.005

# Milliseconds of one core a window, each stage alone on warm caches (performance.md, column `now`);
# in the service a window took 50 ms where its stages sum to 29.2, some 15 % of it for Python.
SOUND_MS, DRAW_MS, COLOURS_MS, H264_MS, AAC_MS = 0.5, 14.6, 1.2, 6.0, 2.0
IN_SERVICE = 50 / 29.2
PYTHON_MS = 0.15 * 50  # under the interpreter's lock: one worker has 320 ms of it a window

# Pixels a second of NVENC. NVIDIA gives 1,040 streams of 720p30 (AV1) for eight L4; taken for H.264
# as well. A 4090 has as many encoders, but GeForce drivers open at most eight sessions a system; an
# H100 has none (docs/guide/gpu.md has the sources).
_ADA_NVENC = 1040 / 8 * 1280 * 720 * 30
NVENC = {"L4": (_ADA_NVENC, None), "RTX 4090": (_ADA_NVENC, 8), "H100 SXM": (0.0, 0)}
# Bytes a second from host to card: a good half of PCIe's nominal 32 (4.0 x16) and 64 GB/s (5.0).
PCIE = {"L4": 20e9, "RTX 4090": 20e9, "H100 SXM": 40e9}


@dataclass(frozen=True)
class Paper:
    """Live sessions that each part would bear alone, at `FULL` load."""

    card: str
    network_ms: float  # of BATCH windows
    network: float
    copies: float
    nvenc: float
    cores_x264: float
    cores_nvenc: float


def window_costs() -> tuple[Cost, Cost, float]:
    """The network's costs of `BATCH` windows, of its context and of a step; bytes of a window's
    inputs and outputs."""
    model = example_model("motion-fast")
    rows = {name: x.to("meta").half() for name, x in model.inputs(BATCH).items()}
    net, cond = model.net.to("meta").half(), conditions_of(rows)
    context = net.context(cond)  # type: ignore[operator]
    copied = sum(x.numel() for x in rows.values()) + STEPS * rows["x_t"].numel()
    return (
        count(net, lambda: net.context(cond)),  # type: ignore[operator]
        count(net, lambda: net.denoise(rows["x_t"], rows["t"], context)),  # type: ignore[operator]
        4.0 * copied / BATCH,
    )


def on_paper(card: Card, costs: tuple[Cost, Cost, float]) -> Paper:
    context, step, copied = costs
    floor_ms = 1e3 * (context.floor_s(card) + STEPS * step.floor_s(card))
    kernels = len(context.operations) + STEPS * len(step.operations)
    network_ms = max(floor_ms / UTILISATION, kernels * KERNEL_MS)
    frame = 1.5 * SIDE * SIDE  # YUV 4:2:0, which NVENC reads from the host's memory
    pixels, most = NVENC[card.name]
    nvenc = FULL * pixels / (SIDE * SIDE * FPS)
    return Paper(
        card.name,
        network_ms,
        FULL * BATCH * WINDOW_MS / network_ms,
        FULL * PCIE[card.name] / (copied * FPS / HOP + frame * FPS),
        nvenc if most is None else min(nvenc, most),
        by_cores(SOUND_MS + DRAW_MS + COLOURS_MS + H264_MS + AAC_MS),
        by_cores(SOUND_MS + DRAW_MS + COLOURS_MS + AAC_MS),
    )


def by_cores(stages_ms: float) -> float:
    """Sessions on `CORES` cores that spend ``stages_ms``, as measured alone, on a window."""
    return CORES * FULL * WINDOW_MS / (IN_SERVICE * stages_ms)


def lines() -> list[str]:
    """The result as Markdown."""
    costs = window_costs()
    context, step, copied = costs
    gflop = (context.flops + STEPS * step.flops) / BATCH / 1e9
    rest = CORES * FULL * WINDOW_MS / (SOUND_MS + AAC_MS + PYTHON_MS)
    found = [
        f"- A window takes {gflop:.2f} GFLOP and {copied / 1e3:.0f} kB of copies.",
        f"- One worker's interpreter lock bears {FULL * WINDOW_MS / PYTHON_MS:.0f} sessions.",
        f"- Without drawing, colours and H.264 {CORES} cores would bear {rest:.0f}.",
        "",
        f"| card | network, {BATCH} windows | network | copies | NVENC | {CORES} cores, x264 "
        f"| {CORES} cores, NVENC |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for card in reversed(CARDS):
        one = on_paper(card, costs)
        parts = (one.network, one.copies, one.nvenc, one.cores_x264, one.cores_nvenc)
        cells = " | ".join(f"{sessions:,.0f}" for sessions in parts)
        found.append(f"| {one.card} | {one.network_ms:.1f} ms | {cells} |")
    return found


def main() -> None:
    with torch.inference_mode():
        print(*lines(), sep="\n")


if __name__ == "__main__":
    main()
