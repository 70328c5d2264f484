#!/usr/bin/env bash
# One run on this machine with all its GPUs, in one process. The same command again goes on where it stopped.
#
#   experiments/launch/gpu_box.sh [wsm train arguments]
#   experiments/launch/gpu_box.sh --config=configs/preset.py:gpt2_medium,64 --run=runs/medium
#
# First the plan for these GPUs, unless PLAN names others, e.g. PLAN=h200:8; PLAN= leaves it out. DRY_RUN=1 prints what
# would be done.
set -euo pipefail

[[ " $* " == *" --run="* ]] || { echo "gpu_box.sh: --run=DIR is missing" >&2; exit 2; }
settings=()
for argument in "$@"; do
  [[ $argument == --config* ]] && settings+=("$argument")
done

do_() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then printf '%q ' "$@"; echo; else "$@"; fi
}

gpus() {
  nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null || true
}

if [[ -z ${PLAN+set} ]]; then
  names=$(gpus)
  for chip in H200 H100 A100; do
    if [[ $names == *"$chip"* ]]; then PLAN="${chip,,}:$(wc -l <<<"$names")"; break; fi
  done
fi
[[ -z ${PLAN:-} ]] || do_ wsm plan "${settings[@]}" --topology="$PLAN" --fast

do_ wsm train "$@"
