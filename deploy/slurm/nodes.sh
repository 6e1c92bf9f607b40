#!/bin/bash
# One extraction over all nodes, which share the chunks of its stores:
#   sbatch --nodes=4 deploy/slurm/nodes.sh --model=uni2_h --weights=/shared/weights \
#     --tileset=/shared/tiles --dataset=ours --output=/shared/embeddings
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
srun --kill-on-bad-exit=1 pathorob-jax extract --multihost "$@"
