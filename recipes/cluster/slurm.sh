#!/bin/bash
# Two machines with eight cards each, under Slurm:
#
#     sbatch recipes/cluster/slurm.sh recipes/dpo-lora.yaml --out /shared/runs/mine
#
# The recipe, its data and --out lie on a disk that all machines see. Before the time is up, or where somebody else needs the machines, the run stops at
# a checkpoint; queued again, it goes on.
#SBATCH --job-name=likelier
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -euo pipefail

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=170 # seconds to write a checkpoint in; older versions of torchrun give 30

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # which reads to the end, as head does not

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" --max-restarts 3 \
    -m likelier train "$@"
