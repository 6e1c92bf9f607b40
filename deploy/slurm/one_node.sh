#!/bin/bash
# A whole run on one node:   sbatch deploy/slurm/one_node.sh --model=uni2_h --dataset=camelyon --output=/shared/runs
# Preempted or killed, it is queued again and goes on with what is missing.
#SBATCH --job-name=pathorob
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
srun pathorob-jax run "$@"
