#!/usr/bin/env bash
# Embeddings of text by GPT-3 350M, from pairs of neighbouring passages, on 1 node of 8 GPUs of 80 GB.
#
#   sbatch slurm/embed_text_350m.sh 'data.pairs=[data/text_pairs.jsonl]' [key=value ...]
#SBATCH --job-name=embed_text_350m
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
. "${MEGAGPT_ROOT:-$SLURM_SUBMIT_DIR}/slurm/train.sh" experiment=embed_text_350m "$@"
