#!/bin/bash
# The report of whatever results there are, when the array has ended.
#SBATCH --job-name=pathorob_report
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=00:30:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
srun pathorob-jax run --steps=report --output="${OUTPUT:?the folder of the run}" \
  --model="${MODELS// /,}" --dataset="${DATASETS// /,}" "$@"
