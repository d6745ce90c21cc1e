#!/bin/bash
# One engine over the GPUs of two nodes, under Slurm: one process a node, each with all of its node's GPUs.
#
#   sbatch examples/slurm.sh mistralai/Mixtral-8x7B-Instruct-v0.1
#
# The first task leads and runs the command; the others follow. `--coordinator auto` takes node, numbers and a port of the job's own from Slurm's variables.
# With a process a GPU instead: --ntasks-per-node=4 --gpus-per-task=1, which gives each task one GPU.
#SBATCH --job-name=sarathi-jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --time=01:00:00

set -euo pipefail
# Made up for this job alone; srun hands it to every task. It must never stand on a command line.
SARATHI_JAX_GROUP_KEY=$(openssl rand -hex 32)
export SARATHI_JAX_GROUP_KEY

# If a process is lost the others end by themselves within 5 s; --kill-on-bad-exit makes Slurm end the step then.
srun --kill-on-bad-exit=1 \
    sarathi-jax bench throughput "${1:-demo}" --mesh stage=2,tensor=4 --coordinator auto --num-requests 256
