#!/usr/bin/env bash
# The training grid on one GPU, in at most seven minutes, most important cells first:
#   benchmarks/real/gpu.sh PACKED OUT
# PACKED is the folder that pack.py wrote; checkpoints are in a copy of it that does not outlive the run. grid.json and
# GRID.md are written to OUT: rows that are there already, as those of a CPU, stay, and cells that they hold are not run
# again (rows of two places become one by `python -m benchmarks.real.grid --add`). A seed is a process, since what trains
# a model this small leaves most of a large GPU idle. PYTHON chooses the interpreter; it needs what
# `pip install '.[train]'` brings, and installs nothing. SECONDS_IN_ALL is how long it may take.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
packed="$1" out="$2" limit="${SECONDS_IN_ALL:-420}"
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=4
mkdir -p "$out"
work="$(mktemp -d)"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT
cp -r "$packed"/. "$work/"
for seed in 0 1 2; do
  # None begins in the last minute; one that is still on at the end is stopped, which is no failure.
  timeout --signal=TERM "$limit" "${PYTHON:-python3}" -m benchmarks.real.grid --out "$work" --seeds "$seed" \
    --minutes "$(awk "BEGIN { print ($limit - 60) / 60 }")" --results "$out/grid.json" >"$out/seed$seed.log" 2>&1 &
  pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  if [ "$code" != 0 ] && [ "$code" != 124 ]; then failed=1; fi
done
pids=()
tail -n 2 "$out"/seed?.log
exit "$failed"
