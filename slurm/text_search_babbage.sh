#!/usr/bin/env bash
# The embeddings of text by GPT-3 1.3B, tuned for search, on 1 node of 8 GPUs of 80 GB.
#
#   sbatch slurm/text_search_babbage.sh 'data.pairs=[data/search_pairs.jsonl]' [key=value ...]
#SBATCH --job-name=text_search_babbage
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
. "${MEGAGPT_ROOT:-$SLURM_SUBMIT_DIR}/slurm/train.sh" experiment=text_search_babbage "$@"
