#!/usr/bin/env bash
# Measure everything on one NVIDIA GPU with the engines that are installed: benchmarks/gpu/run.sh [OUT [OPTION…]]
# Installs nothing. Writes results.json and RESULTS.md, and attentions, kernels and variants as .json and .md, to OUT
# (default: beside this file), after every step, what matters most first, in under nine minutes; what there was no time
# for is named in them. PYTHON chooses the interpreter.
# The same without a GPU, on an engine of numpy at toy size, to find mistakes in it: benchmarks/gpu/run.sh --dry OUT
# (two minutes; needs tensorrt-rtx; fails if any step fails or is skipped; its numbers mean nothing).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}"
if [ "${1:-}" = --dry ]; then
  exec "${PYTHON:-python3}" -m benchmarks.gpu.measure --dry ${2:+--out "$2"}
fi
exec "${PYTHON:-python3}" -m benchmarks.gpu.measure --out "${1:-$here}" "${@:2}"
