#!/usr/bin/env bash
# All that is claimed of a GPU, at most 12 minutes on a recent one: bash benchmarks/gpu_evidence.sh
# What has its record already is not run again. On a CPU, to see that it works: bash benchmarks/gpu_evidence.sh --tiny
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
device=cuda
out=results/gpu
small=() step=() meta=() tiny=()
if [ "${1:-}" = --tiny ]; then
  device=cpu
  out=$(mktemp -d)
  small=(--rounds 1)
  step=(--networks perceptron) meta=(--network small)
  tiny=(--tiny)
fi

once() { [ -e "$out/$1" ] || "$python" "benchmarks/$2" --device "$device" --json "$out/$1" "${@:3}"; }

once optim_step.json optim_step.py "${small[@]}" "${step[@]}"
once schedule_query.json schedule_query.py "${small[@]}"
once calibrated_step.json calibrated_step.py "${small[@]}"
once meta_step.json meta_step.py "${small[@]}" "${meta[@]}"
"$python" benchmarks/gpu_evidence.py --device "$device" --json "$out/evidence.json" "${tiny[@]}"
echo "records: $out"
