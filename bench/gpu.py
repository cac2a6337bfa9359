"""Speed of the motion and video networks' engines on this GPU, against the card's peak.

    python bench/gpu.py [--networks …] [--backends …] [--precisions …] [--out F]
                        [--batches 1,2,4,8] [--motion-batches 1,2,4,…,256]
    python bench/gpu.py --dry          # small batches and video networks on the CPU

Motion models are those that ship, video networks have their full size and random weights. Each
network, backend and precision is built, compared with its network in single precision (see `fada
engines build`) and timed in its own process, so that a failure or lack of memory only costs its
line of the table. Times are the median of repeated calls between CUDA events, after as many warm-up
calls. FLOPs are torch's count; the card's peak is its maker's, dense, in half precision with
single-precision sums (`bench/flops.py`). Whole windows are summed up from their parts: the context
once, the sampler's evaluations, and a video's decoding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from engines.build import BuildSpec, build, in_precision, load, without_tf32
from engines.cuda_graphs import CapturedProgram
from engines.example_inputs import VIDEO, ExampleModel, Inputs, example_model
from engines.export import Graph, Program, Tensors, graphs_of
from model.audio.log_mel import HOP
from model.types import FPS

REPEATS = 20
ROOT = Path(__file__).parents[1]
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "4090": 165e12, "L4": 121e12}


@dataclass(frozen=True)
class Sampling:
    """How a window of ``frames`` new frames is made. ``branches``: of guidance, in one batch."""

    title: str
    network: str
    steps: int
    frames: int
    branches: int = 1
    decoder: str | None = None


# A teacher's third branch has weight 1 - s_ref, 0 at the default scales: 25 x 2 = 50 evaluations.
_VIDEO_FRAMES = 12
SAMPLINGS = (
    Sampling("motion-fast, 2 steps", "motion-fast", 2, HOP),
    Sampling("motion-teacher, 50 evaluations", "motion-teacher", 25, HOP, branches=2),
    *(
        Sampling(
            f"video student, {steps} steps",
            "video-student",
            steps,
            _VIDEO_FRAMES,
            decoder="video-decoder",
        )
        for steps in (6, 4, 2)
    ),
    Sampling(
        "video teacher, 50 evaluations",
        "video-teacher",
        25,
        _VIDEO_FRAMES,
        branches=2,
        decoder="video-decoder",
    ),
)
MOTION = ("motion-fast", "motion-teacher")


@dataclass(frozen=True)
class Case:
    network: str
    backend: str
    precision: str


@dataclass(frozen=True)
class Timing:
    """One function of a network, at one batch. ``replayed``: as a CUDA graph."""

    case: Case
    function: str
    batch: int
    replayed: bool
    ms: float
    memory_gb: float
    tflop: float
    parity: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", type=_names, default=(*MOTION, *VIDEO))
    parser.add_argument("--backends", type=_names, default=("eager", "compiled", "tensorrt"))
    parser.add_argument("--precisions", type=_names, default=("fp16",))
    parser.add_argument("--batches", type=_numbers, default=(1, 2, 4, 8), help="of video networks")
    parser.add_argument(
        "--motion-batches", type=_numbers, default=tuple(2**n for n in range(9)), help="[1 to 256]"
    )
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="engines, results")
    parser.add_argument("--dry", action="store_true", help="tiny networks, on the CPU")
    parser.add_argument("--case", type=_names, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not chosen.dry and not torch.cuda.is_available():
        sys.exit("bench/gpu.py: there is no GPU; --dry tries the program without one")
    if chosen.case:
        case = Case(*chosen.case)
        timings = measure(case, _batches(case, chosen), chosen.out, dry=chosen.dry)
        print(json.dumps([asdict(timing) for timing in timings]))
        return
    print(f"{_card(chosen.dry)}, torch {torch.__version__}\n")
    cases = [
        Case(network, backend, precision)
        for network in chosen.networks
        for precision in chosen.precisions
        for backend in chosen.backends
        if precision != "fp8" or backend == "tensorrt"
    ]
    timings = list(_measured(cases, chosen))
    chosen.out.mkdir(parents=True, exist_ok=True)
    results = json.dumps([asdict(timing) for timing in timings], indent=1)
    (chosen.out / "timings.json").write_text(results)
    print_windows(timings)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _batches(case: Case, chosen: argparse.Namespace) -> tuple[int, ...]:
    """Video networks fill a card with few windows, motion networks with many."""
    return tuple(chosen.motion_batches if case.network in MOTION else chosen.batches)


def _card(dry: bool) -> str:
    return "no GPU" if dry else torch.cuda.get_device_name()


def _measured(cases: Iterable[Case], chosen: argparse.Namespace) -> Iterable[Timing]:
    """Measure every case in its own process, and print its lines as they come."""
    print("| network | engine | function | batch | ms | TFLOP/s | of the card | memory | off by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    peak = 0.0 if chosen.dry else _peak(torch.cuda.get_device_name())
    for case in cases:
        words = [sys.executable, __file__, "--case", ",".join(asdict(case).values())]
        for flag in ("batches", "motion_batches"):
            words += [f"--{flag.replace('_', '-')}", ",".join(map(str, getattr(chosen, flag)))]
        words += ["--out", str(chosen.out)]
        done = subprocess.run(
            [*words, *(["--dry"] if chosen.dry else [])], capture_output=True, text=True
        )
        sys.stderr.write(done.stderr)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            print(f"| {case.network} | {case.backend} {case.precision} | failed: {lines[-1]} |")
            continue
        for kept in json.loads(done.stdout.splitlines()[-1]):
            timing = Timing(**kept | {"case": case})
            print(_line(timing, peak), flush=True)
            yield timing


def _peak(name: str) -> float:
    """The card's FLOP/s; 0 if unknown."""
    return next((rate for part, rate in PEAKS.items() if part in name), 0.0)


def _line(timing: Timing, peak: float) -> str:
    rate = 1e3 * timing.tflop / timing.ms  # TFLOP/s
    share = f"{1e14 * rate / peak:.0f} %" if peak else "–"
    engine = f"{timing.case.backend} {timing.case.precision}"
    engine += ", CUDA graph" if timing.replayed else ""
    return (
        f"| {timing.case.network} | {engine} | {timing.function} | {timing.batch} "
        f"| {timing.ms:.2f} | {rate:.1f} | {share} | {timing.memory_gb:.2f} GB "
        f"| {timing.parity:.1e} |"
    )


def measure(case: Case, batches: tuple[int, ...], out: Path, *, dry: bool) -> list[Timing]:
    """Build one engine and time all its functions."""
    device = "cpu" if dry else "cuda"
    torch.set_num_threads(1 if dry else torch.get_num_threads())
    chosen = example_model(case.network, tiny=dry, device=device)
    programs, parity = _programs(case, chosen, range(1, max(batches) + 1), out=out, device=device)
    # In half precision the network has the same inputs and FLOPs as in FP8.
    net = in_precision(
        chosen.net, case.precision if case.precision != "fp8" else "fp16", chosen.inputs
    )
    graphs = graphs_of(net.to(device), _on(device, chosen.inputs)(2))
    timings = []
    for graph in graphs:
        for batch in batches:
            rows = graph.rows(batch)
            tflop = _tflop(graph, rows)
            for replayed in (False, True) if device == "cuda" else (False,):
                program = programs[graph.name]
                try:
                    ms, memory = _time(
                        CapturedProgram(program) if replayed else program, rows, device
                    )
                except RuntimeError as error:
                    if not replayed:
                        raise
                    print(f"no CUDA graph of {graph.name}: {error}", file=sys.stderr)
                    continue
                timings.append(Timing(case, graph.name, batch, replayed, ms, memory, tflop, parity))
    return timings


def _programs(
    case: Case, chosen: ExampleModel, batch: range, *, out: Path, device: str
) -> tuple[dict[str, Program], float]:
    """The network's functions, and their largest error."""
    if case.backend == "eager":
        net = in_precision(chosen.net, case.precision, chosen.inputs).to(device)
        graphs = graphs_of(net, _on(device, chosen.inputs)(2))
        return {graph.name: graph for graph in graphs}, 0.0
    place, manifest = build(chosen, BuildSpec(case.backend, case.precision, batch), out)
    return load(place, manifest), max(manifest.parity.values())


def _on(device: str, inputs: Inputs) -> Inputs:
    return lambda rows: {name: x.to(device) for name, x in inputs(rows).items()}


def _tflop(graph: Graph, rows: Tensors) -> float:
    with FlopCounterMode(display=False) as counter, without_tf32():
        graph(rows)
    return float(counter.get_total_flops()) / 1e12


def _time(program: Callable[[Tensors], Any], rows: Tensors, device: str) -> tuple[float, float]:
    """Median milliseconds, and peak memory in GB."""
    with torch.inference_mode():
        if device == "cpu":
            return _cpu_ms(program, rows), 0.0
        torch.cuda.reset_peak_memory_stats()
        for _ in range(REPEATS):
            program(rows)
        spent = []
        for _ in range(REPEATS):
            begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            program(rows)
            done.record()
            done.synchronize()
            spent.append(float(begun.elapsed_time(done)))
        free, total = torch.cuda.mem_get_info()  # includes TensorRT's, which torch does not count
        return statistics.median(spent), (total - free) / 1e9


def _cpu_ms(program: Callable[[Tensors], Any], rows: Tensors) -> float:
    spent = []
    for _ in range(3):
        begun = time.perf_counter()
        program(rows)
        spent.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(spent)


def print_windows(timings: Iterable[Timing]) -> None:
    """Print what whole windows of several sessions take, and how many sessions keep real time."""
    best: dict[tuple[str, str, str, int], float] = {}
    for timing in timings:
        engine = f"{timing.case.backend} {timing.case.precision}"
        key = (engine, timing.case.network, timing.function, timing.batch)
        best[key] = min(timing.ms, best.get(key, timing.ms))
    print(f"\nWhole windows, the network alone; real time is {FPS} frames a second:\n")
    print("| window | engine | at once | ms | frames/s | sessions in real time |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for sampling in SAMPLINGS:
        for engine in dict.fromkeys(key[0] for key in best):
            for sessions in sorted({key[3] for key in best}):
                ms = _window_ms(best, sampling, engine, sessions=sessions)
                if ms is not None:
                    rate = 1e3 * sampling.frames * sessions / ms
                    print(
                        f"| {sampling.title} | {engine} | {sessions} | {ms:.2f} | {rate:.1f} "
                        f"| {rate / FPS:.1f} |"
                    )


def _window_ms(
    best: dict[tuple[str, str, str, int], float], sampling: Sampling, engine: str, *, sessions: int
) -> float | None:
    """One window of each of ``sessions``; None where a part was not timed at that batch."""
    rows = sessions * sampling.branches
    context = best.get((engine, sampling.network, "context", rows))
    denoise = best.get((engine, sampling.network, "denoise", rows))
    if context is None or denoise is None:
        return None
    ms = context + sampling.steps * denoise
    if sampling.decoder is None:
        return ms
    decode = best.get((engine, sampling.decoder, "decode", sessions))
    return None if decode is None else ms + sampling.frames * decode


if __name__ == "__main__":
    main()
