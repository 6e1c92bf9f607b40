#!/bin/bash
# One part of an array over encoders and datasets, as chain.sh submits it. The lists come in
# MODELS and DATASETS, space-separated; further flags of run as arguments.
#SBATCH --job-name=pathorob_array
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
read -r -a models <<<"${MODELS:?the encoders, space-separated}"
read -r -a datasets <<<"${DATASETS:?the datasets, space-separated}"
part=${SLURM_ARRAY_TASK_ID:?submit this script as an array}
model=${models[part / ${#datasets[@]}]}
dataset=${datasets[part % ${#datasets[@]}]}
srun pathorob-jax run --steps=extract,evaluate --model="$model" --dataset="$dataset" "$@"
