#!/bin/sh
# Every measurement of the engines that needs a GPU, unattended: bench/gpu.sh [--dry] [OUT]
#
# Builds and compares every video network, times eager, compiled and TensorRT engines with and
# without CUDA graphs at real size (random weights, 512 x 512, 1 to 8 windows at once), and runs the
# tests that need a GPU. OUT (out/gpu) gets report.md, timings.json and the engines. --dry tries the
# same with tiny networks on the CPU. PYTHON names the interpreter, PRECISIONS what to build.
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
status=0
{
    echo "# Engines on $(date -u +%F)"
    echo
    # What fails is a line of the table; only a program that does not run at all ends badly.
    if [ -n "$dry" ]; then
        "$python" bench/gpu.py --dry --backends "${BACKENDS:-eager}" --batches 1,2 --out "$out" ||
            status=$?
    else
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || true
        "$python" -m pip list 2>/dev/null | grep -i -E '^(torch|tensorrt|nvidia-modelopt)' || true
        echo
        "$python" bench/gpu.py --precisions "${PRECISIONS:-fp16,bf16,fp8}" --out "$out" ||
            status=$?
        echo
        "$python" -m pytest -q -m gpu tests/engines || status=$?
    fi
} >"$out/report.md" 2>"$out/errors.log"
cat "$out/report.md"
[ "$status" = 0 ] || cat "$out/errors.log" >&2
exit "$status"
