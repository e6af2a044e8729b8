#!/usr/bin/env bash
# Codex's training on code of GPT-3 350M on 1 node of 8 GPUs of 80 GB.
#
#   sbatch slurm/code_350m.sh 'data.corpora=[{path:data/code}]' [key=value ...]
#SBATCH --job-name=code_350m
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
. "${MEGAGPT_ROOT:-$SLURM_SUBMIT_DIR}/slurm/train.sh" experiment=code_350m "$@"
