"""Speed of the video networks' engines at full size on this GPU, against the card's peak.

    python bench/gpu.py [--networks …] [--backends …] [--precisions …] [--batches 1,2,4,8] [--out F]
    python bench/gpu.py --dry                  # tiny networks on the CPU, to try the program

Weights are random. Each network, backend and precision is built, compared with its network in
single precision (see `fada engines build`) and timed in its own process, so that a failure or lack
of memory only costs its line of the table. Times are the median of repeated calls between CUDA
events, after as many warm-up calls. FLOPs are torch's count; the card's peak is its maker's,
dense, in half precision with single-precision sums (`bench/flops.py`).
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

FRAMES = 12  # new frames of a window
STEPS = (6, 4, 2)
REPEATS = 20
ROOT = Path(__file__).parents[1]
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "4090": 165e12, "L4": 121e12}


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
    parser.add_argument("--networks", type=_names, default=VIDEO)
    parser.add_argument("--backends", type=_names, default=("eager", "compiled", "tensorrt"))
    parser.add_argument("--precisions", type=_names, default=("fp16",))
    parser.add_argument("--batches", type=_numbers, default=(1, 2, 4, 8))
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="engines, results")
    parser.add_argument("--dry", action="store_true", help="tiny networks, on the CPU")
    parser.add_argument("--case", type=_names, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not chosen.dry and not torch.cuda.is_available():
        sys.exit("bench/gpu.py: there is no GPU; --dry tries the program without one")
    if chosen.case:
        timings = measure(Case(*chosen.case), chosen.batches, chosen.out, dry=chosen.dry)
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
    print_speeds(timings)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _card(dry: bool) -> str:
    return "no GPU" if dry else torch.cuda.get_device_name()


def _measured(cases: Iterable[Case], chosen: argparse.Namespace) -> Iterable[Timing]:
    """Measure every case in its own process, and print its lines as they come."""
    print("| network | engine | function | batch | ms | TFLOP/s | of the card | memory | off by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    peak = 0.0 if chosen.dry else _peak(torch.cuda.get_device_name())
    for case in cases:
        words = [sys.executable, __file__, "--case", ",".join(asdict(case).values())]
        words += ["--batches", ",".join(map(str, chosen.batches)), "--out", str(chosen.out)]
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


def print_speeds(timings: list[Timing]) -> None:
    """Print frames per second of whole windows: context once, the student's steps, decoding."""
    best: dict[tuple[str, str, str, int], float] = {}
    for timing in timings:
        engine = f"{timing.case.backend} {timing.case.precision}"
        key = (engine, timing.case.network, timing.function, timing.batch)
        best[key] = min(timing.ms, best.get(key, timing.ms))
    engines = dict.fromkeys(key[0] for key in best)
    batches = sorted({key[3] for key in best})
    print(f"\nFrames a second, {FRAMES} a window, decoded in batches of as many as sessions:\n")
    print("| engine | sessions | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
    print("| --- | --- |" + " --- |" * len(STEPS))
    for engine in engines:
        for batch in batches:
            parts = [
                best.get((engine, *part, batch))
                for part in (
                    ("video-student", "context"),
                    ("video-student", "denoise"),
                    ("video-decoder", "decode"),
                )
            ]
            if None in parts:
                continue
            context, denoise, decode = (float(part or 0.0) for part in parts)
            rates = [
                1e3 * FRAMES * batch / (context + steps * denoise + FRAMES * decode)
                for steps in STEPS
            ]
            print(f"| {engine} | {batch} | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |")


if __name__ == "__main__":
    main()
