#!/bin/sh
# Every measurement that needs a GPU, unattended: bench/gpu.sh [--dry] [OUT]
#
# Builds and compares every motion and video network, times eager, compiled and TensorRT engines with
# and without CUDA graphs (motion 1 to 256 windows at once, video 1 to 8 at real size, 512 x 512, with
# random weights), sums up whole windows of students and teachers, finds how many live sessions the
# card bears with the engines just built, and runs the tests that need a GPU. OUT (out/gpu) gets
# report.md, timings.json, live.json and the engines. --dry tries the same on a CPU at small sizes.
# PYTHON names the interpreter, PRECISIONS what to build, SESSIONS where the search ends (64),
# WORKERS how many share the card (1).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
dry=
if [ "${1:-}" = --dry ]; then
    dry=--dry
    shift
fi
out=${1:-out/gpu}
mkdir -p "$out"
# Whole sessions, through the service, on the engines that were built.
live() {
    echo
    FADA_ENGINES="$out" "$python" -m fada.cli bench live --workers "${WORKERS:-1}" --json "$out/live.json" "$@"
}
status=0
{
    echo "# Engines on $(date -u +%F)"
    echo
    # What fails is a line of the table; only a program that does not run at all ends badly.
    if [ -n "$dry" ]; then
        "$python" bench/gpu.py --dry --backends "${BACKENDS:-eager}" --batches 1,2 \
            --motion-batches 1,2 --out "$out" || status=$?
        live --sessions 1 --seconds 2 --size 256 || true # one that is late proves the program as well
    else
        "$python" -m fada.cli doctor || true
        echo
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || true
        "$python" -m pip list 2>/dev/null | grep -i -E '^(torch|tensorrt|nvidia-modelopt)' || true
        echo
        "$python" bench/gpu.py --precisions "${PRECISIONS:-fp16,bf16,fp8}" --out "$out" ||
            status=$?
        echo
        live --search --sessions "${SESSIONS:-64}" --seconds 20 || true # fewer are a figure as well
        echo
        "$python" -m pytest -q -m gpu tests/engines || status=$?
    fi
} >"$out/report.md" 2>"$out/errors.log"
cat "$out/report.md"
[ "$status" = 0 ] || cat "$out/errors.log" >&2
exit "$status"
