#!/bin/bash
# One command over all nodes, which share its work: extract, or COMMAND=evaluate, robustify, run.
#   sbatch --nodes=4 deploy/slurm/nodes.sh --model=uni2_h --weights=/shared/weights \
#     --tileset=/shared/tiles --dataset=ours --output=/shared/embeddings
#   COMMAND=evaluate sbatch --nodes=4 deploy/slurm/nodes.sh --embeddings=/shared/embeddings \
#     --metrics=robustness_index,apd --output=/shared/results
# The output must be one folder of all nodes. JAX reads the nodes from SLURM's environment.
#SBATCH --job-name=pathorob_extract
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
srun --kill-on-bad-exit=1 pathorob-jax "${COMMAND:-extract}" --multihost "$@"
