#!/usr/bin/env bash
# The training grid on one GPU, in at most seven minutes, most important cells first:
#   benchmarks/real/gpu.sh PACKED OUT
# PACKED is the folder that pack.py wrote; a copy of it beside OUT holds checkpoints. grid.json and GRID.md are written
# to OUT: rows that are there already, as those of a CPU, stay, and cells that they hold are not run again. A seed is a
# process, since what trains a model this small leaves most of a large GPU idle. PYTHON chooses the interpreter; it needs
# what `pip install '.[train]'` brings, and installs nothing. SECONDS_IN_ALL is how long it may take.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
packed="$1" out="$2" limit="${SECONDS_IN_ALL:-420}"
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=4
mkdir -p "$out"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp -r "$packed"/. "$work/"
pids=()
for seed in 0 1 2; do
  # A cell that has begun may end: none begins in the last minute.
  timeout --signal=TERM "$limit" "${PYTHON:-python3}" -m benchmarks.real.grid --out "$work" --seeds "$seed" \
    --minutes "$(awk "BEGIN { print ($limit - 60) / 60 }")" --results "$out/grid.json" >"$out/seed$seed.log" 2>&1 &
  pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
tail -n 2 "$out"/seed?.log
exit "$failed"
