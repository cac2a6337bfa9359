"""What a worker costs to start, and the memory that it then holds, with warm caches.

python bench/worker_start.py [--runs 5] [--workers 1]

A service is started twice to fill the caches, then once for each run; figures are medians over the
workers. CPU seconds are comparable on a busy machine, wall seconds are not. PSS counts a page that
n processes map 1/n times.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from statistics import median

from bench.live.report import processor
from bench.live.service import own_service, process_cpu_s, worker_processes

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(?P<name>.*)$")
_FIELD = re.compile(r"^(?P<field>Rss|Pss|Private_Dirty): +(?P<kb>\d+) kB$")
_LARGEST = 12
_WARM_UPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    found: list[dict[str, float]] = []
    mappings: Counter[str] = Counter()
    for run in range(-_WARM_UPS, options.runs):
        began_s = time.monotonic()
        with own_service(1, options.workers) as service:
            assert service.pid is not None
            ready_s = time.monotonic() - began_s
            for worker in worker_processes(service.pid):
                figures, mappings = memory_mb(worker)
                figures |= {"CPU s": process_cpu_s(worker) or 0.0, "service ready, wall s": ready_s}
                if run >= 0:
                    found.append(figures)
    print(f"{processor()}; medians of {len(found)} workers")
    for name in found[0]:
        print(f"  {name}: {median(one[name] for one in found):.4g}")
    print("largest mappings of the last, resident MB:")
    for name, kilobytes in mappings.most_common(_LARGEST):
        print(f"  {kilobytes / 1024:6.0f}  {name}")


def memory_mb(process: int) -> tuple[dict[str, float], Counter[str]]:
    """Its RSS, PSS and private memory, and resident kilobytes by mapping."""
    total: Counter[str] = Counter()
    mappings: Counter[str] = Counter()
    name = ""
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if mapping := _MAPPING.match(line):
            name = Path(mapping["name"]).name or "anonymous"
        elif field := _FIELD.match(line):
            total[field["field"]] += int(field["kb"])
            if field["field"] == "Rss":
                mappings[name] += int(field["kb"])
    return {f"{field} MB": kb / 1024 for field, kb in total.items()}, mappings


if __name__ == "__main__":
    main()
