#!/bin/bash
# The same command on every host of a TPU pod, without Kubernetes:
#   TPU=name ZONE=us-central2-b bash deploy/tpu/pod.sh --model=uni2_h --weights=/bucket/weights \
#     --tileset=gs://bucket/tiles --dataset=ours --output=gs://bucket/embeddings
# Each host has pathorob-jax in ~/pathorob_jax/.venv, and the bucket mounted for --weights.
set -euo pipefail
: "${TPU:?name of the TPU pod}" "${ZONE:?its zone}"
printf -v flags ' %q' "$@"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="~/pathorob_jax/.venv/bin/pathorob-jax extract --multihost$flags"
