#!/bin/bash
# A job of two components: the daemon on a node of its own, with cores alone, and the training on nodes with GPUs. Trainers
# find the daemon by a file on the shared disk; where it has not come up, or they have no route to it, they spool to that
# disk instead, and the spool is shipped later (`rankd sync`). deploy/slurm.sh has daemon and training on the same nodes.
#
# Once, on the login node:
#   rankd keys new "$USER" -o ~/rankd.key      # the daemon's keyring and your key, both files of yours alone
# Then:
#   sbatch deploy/slurm-het.sh
#SBATCH --job-name=train
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
# The daemon: half of its cores measure. docs/operations.md says how many a model needs.
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=32 --mem=64G
#SBATCH hetjob
#SBATCH --nodes=8 --ntasks-per-node=8 --gpus-per-node=8
set -euo pipefail

SHARED=${SLURM_SUBMIT_DIR:-$PWD}                       # seen by every node
KEPT=$SHARED/rankd-$SLURM_JOB_ID                       # the history, and what was spooled
DISCOVERY=$KEPT.json
# While it is written, the history is on a disk of this node: on a network file system it is refused.
HISTORY=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/rankd-$SLURM_JOB_ID
WAIT_SECONDS=${WAIT_SECONDS:-120}                      # for the daemon, before the training begins without it

export RANKD_URL=file://$DISCOVERY                     # read again at each connection
export RANKD_KEY=${RANKD_KEY:-$HOME/rankd.key}
export RANKD_RUN=${RANKD_RUN:-$SLURM_JOB_NAME-$SLURM_JOB_ID}

if [ -d "$KEPT/history" ] && [ ! -d "$HISTORY" ]; then # requeued: the run goes on, with its baselines
  cp -r "$KEPT/history" "$HISTORY"
fi

# This script runs on the first component's node, hence the daemon does.
rankd serve --url tcp://0.0.0.0:0 --http off --device cpu --data "$HISTORY" --discovery "$DISCOVERY" &
DAEMON=$!

finish() {
  kill -TERM "$DAEMON" 2>/dev/null || true             # it finishes what it measures, within 20 s
  wait "$DAEMON" || true
  [ -d "$HISTORY" ] || return 0                        # it never came up
  mkdir -p "$KEPT" && rm -rf "$KEPT/history.new"
  # What is left on this node would be older than what other nodes add.
  cp -r "$HISTORY" "$KEPT/history.new" && rm -rf "$KEPT/history" && mv "$KEPT/history.new" "$KEPT/history" && rm -rf "$HISTORY"
}
trap finish EXIT
trap 'exit 143' TERM                                   # the batch system wants the nodes back

is_reached() {                                         # from a node of the training
  [ -f "$DISCOVERY" ] && srun --het-group=1 --nodes=1 --ntasks=1 python -c '
import json, socket, sys
host, port = json.load(open(sys.argv[1]))["push"].removeprefix("tcp://").rsplit(":", 1)
socket.create_connection((host, int(port)), timeout=5).close()' "$DISCOVERY"
}

until is_reached; do
  if [ "$SECONDS" -ge "$WAIT_SECONDS" ] || ! kill -0 "$DAEMON" 2>/dev/null; then
    export RANKD_MODE=offline RANKD_SPOOL=$KEPT/spool
    mkdir -p "$KEPT" && mkdir -m 0700 -p "$RANKD_SPOOL"
    echo "no daemon at $DISCOVERY: training spools; afterwards: rankd sync $RANKD_SPOOL --url tcp://HOST:PORT" >&2
    break
  fi
  sleep 1
done

srun --het-group=1 python train.py &                   # in the background, so that a signal is heard at once
wait $!
