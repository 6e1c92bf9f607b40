#!/bin/bash
# Brings data and weights, then checks data, revisions, weights, licences, shapes and one tile
# through every encoder. What comes after it begins only if all of that is well.
#SBATCH --job-name=pathorob_preflight
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
output=${OUTPUT:?the folder of the run}
srun pathorob-jax run --steps=fetch,convert --output="$output" \
  --model="${MODELS// /,}" --dataset="${DATASETS// /,}" "$@"
srun pathorob-jax doctor --output="$output" --run="$output"
