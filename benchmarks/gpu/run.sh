#!/usr/bin/env bash
# Measure everything on one NVIDIA GPU with the engines that are installed: benchmarks/gpu/run.sh [OUT]
# Installs nothing. Writes results.json and RESULTS.md to OUT (default: beside this file), in under eight minutes;
# what there was no time for is named in them. PYTHON chooses the interpreter.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$here/measure.py" --out "${1:-$here}"
