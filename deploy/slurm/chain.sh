#!/bin/bash
# Submits preflight, an array over encoders and datasets, and the report, without Python:
#   MODELS="uni2_h virchow2" DATASETS="camelyon tcga" OUTPUT=/shared/runs CAP=8 \
#     bash deploy/slurm/chain.sh --metrics=robustness_index,margins
# SBATCH_PARTITION, SBATCH_ACCOUNT and the like are read by sbatch itself.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${MODELS:?the encoders, space-separated}" "${DATASETS:?the datasets, space-separated}"
: "${OUTPUT:?the folder of the run, which all nodes see}"
export MODELS DATASETS OUTPUT
read -r -a models <<<"$MODELS"
read -r -a datasets <<<"$DATASETS"
parts=$((${#models[@]} * ${#datasets[@]}))
mkdir -p "$OUTPUT/jobs"
log=$OUTPUT/jobs/%x_%A_%a.log

preflight=$(sbatch --parsable --output="$OUTPUT/jobs/%x_%j.log" "$here/preflight.sh" "$@")
array=$(sbatch --parsable --dependency="afterok:${preflight%%;*}" --kill-on-invalid-dep=yes --output="$log" \
  --array="0-$((parts - 1))%${CAP:-8}" "$here/array.sh" --output="$OUTPUT" "$@")
report=$(sbatch --parsable --dependency="afterany:${array%%;*}" \
  --output="$OUTPUT/jobs/%x_%j.log" "$here/report.sh" "$@")
echo "preflight ${preflight%%;*}, array ${array%%;*} of $parts parts, report ${report%%;*}"
echo "how far it is: pathorob-jax status --output=$OUTPUT"
