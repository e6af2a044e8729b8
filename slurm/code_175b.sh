#!/usr/bin/env bash
# Codex's training on code of GPT-3 175B on 128 nodes of 8 GPUs of 80 GB.
#
#   sbatch slurm/code_175b.sh 'data.corpora=[{path:data/code}]' [key=value ...]
#SBATCH --job-name=code_175b
#SBATCH --nodes=128
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
. "${MEGAGPT_ROOT:-$SLURM_SUBMIT_DIR}/slurm/train.sh" experiment=code_175b "$@"
