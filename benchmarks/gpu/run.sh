#!/usr/bin/env bash
# Measure everything on one NVIDIA GPU with the engines that are installed: benchmarks/gpu/run.sh [OUT]
# Installs nothing. Writes results.json and RESULTS.md, and for the open questions questions.json, QUESTIONS.md,
# variants.json and VARIANTS.md, to OUT (default: beside this file), in under eight minutes; what there was no time for
# is named in them. Where only torch is installed, only its questions are asked. PYTHON chooses the interpreter.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$here/measure.py" --out "${1:-$here}"
