#!/usr/bin/env bash
# The embeddings of code by GPT-3 350M, tuned for search, on 1 node of 8 GPUs of 80 GB.
#
#   sbatch slurm/code_search_ada.sh 'data.pairs=[data/code_search_pairs.jsonl]' [key=value ...]
#SBATCH --job-name=code_search_ada
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
. "${MEGAGPT_ROOT:-$SLURM_SUBMIT_DIR}/slurm/train.sh" experiment=code_search_ada "$@"
