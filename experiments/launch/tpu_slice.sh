#!/usr/bin/env bash
# One run on a slice of TPU VMs: asks for it, waits, trains on all its hosts, and after a preemption asks again.
#
#   experiments/launch/tpu_slice.sh NAME CHIP:SHAPE [wsm train arguments]
#   experiments/launch/tpu_slice.sh 8b v5p:4x4x8 --config=configs/preset.py:llama_3_1_8b,256 --config.mesh.fsdp=-1 --run=gs://BUCKET/8b
#
# ZONE says where; PROJECT, RUNTIME and SPOT=0 (no preemptible chips) are optional. The run directory must be in a
# bucket: the same command on new machines goes on from the newest full state. DRY_RUN=1 prints what would be done.
set -euo pipefail

name=${1:?NAME is missing} slice=${2:?CHIP:SHAPE is missing, e.g. v5p:4x4x8}
shift 2
chip=${slice%%:*} shape=${slice#*:}
case $chip in
  v5e) type=v5litepod runtime=v2-alpha-tpuv5-lite ;;
  v5p) type=v5p runtime=v2-alpha-tpuv5 ;;
  v6e) type=v6e runtime=v2-alpha-tpuv6e ;;
  *) echo "tpu_slice.sh: unknown chip $chip; known: v5e, v5p, v6e" >&2; exit 2 ;;
esac
[[ " $* " == *" --run=gs://"* ]] || { echo "tpu_slice.sh: --run must be in a bucket, gs://BUCKET/PATH" >&2; exit 2; }
where=(--zone="${ZONE:?ZONE is missing, e.g. ZONE=us-east5-a}" ${PROJECT:+--project="$PROJECT"})
spot=(--spot)
[[ ${SPOT:-1} == 1 ]] || spot=()
train="wsm train --distributed$(printf ' %q' "$@")"
source=$(git remote get-url origin 2>/dev/null || echo wsm-jax)
[[ $source == wsm-jax ]] || source="wsm-jax @ git+$source@$(git rev-parse HEAD)"
# The machines' own Python is too old for libtpu's newest JAX; uv brings one.
setup="curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --clear --python=3.12 ~/wsm &&
  ~/.local/bin/uv pip install --quiet --python ~/wsm '${source/wsm-jax/wsm-jax[train,tpu,gcs]}'"

do_() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then printf '%q ' "$@"; echo; else "$@"; fi
}

ask() {
  do_ gcloud compute tpus queued-resources create "$name" --node-id="$name" --type="$type" --topology="$shape" \
    --runtime-version="${RUNTIME:-$runtime}" "${where[@]}" "${spot[@]}"
}

state() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then echo ACTIVE; else
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' || echo NONE
  fi
}

on_all() {
  do_ gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

while true; do
  [[ ${DRY_RUN:-0} != 1 && $(state) == ACTIVE ]] || ask
  until [[ $(state) == ACTIVE ]]; do sleep 60; done
  if on_all "$setup" && on_all "PATH=~/wsm/bin:\$PATH $train"; then break; fi
  [[ $(state) == ACTIVE ]] && { echo "tpu_slice.sh: the run ended with an error; the slice is kept" >&2; exit 1; }
  do_ gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
done
do_ gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
