#!/bin/bash
# A training on nodes that reach no daemon: it spools to a disk that all of its nodes share. Another job, on a node with a
# route, ships that when this one has ended, however it ended:
#   job=$(sbatch --parsable deploy/slurm-offline.sh)
#   export RANKD_URL=tcp://monitor:7777 RANKD_KEY=~/rankd.key      # for the job that ships; by default it gets your environment
#   sbatch --dependency=afterany:$job --wrap "rankd sync $PWD/rankd-spool --delete"
# or while it trains, again and again: rankd sync rankd-spool --url tcp://monitor:7777 --key ~/rankd.key
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
set -euo pipefail

export RANKD_MODE=offline
export RANKD_SPOOL=${RANKD_SPOOL:-${SLURM_SUBMIT_DIR:-$PWD}/rankd-spool}
export RANKD_SPOOL_BYTES=${RANKD_SPOOL_BYTES:-107374182400}   # of all processes together; what is densest gives way first
export RANKD_RUN=${RANKD_RUN:-$SLURM_JOB_NAME-$SLURM_JOB_ID}
mkdir -m 0700 -p "$RANKD_SPOOL"

srun python train.py
