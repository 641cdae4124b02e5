#!/bin/bash
# One training job and its daemon, on whatever nodes the batch system gives. The daemon runs beside the training on the
# first node; the trainers of all nodes find it by a file on the shared disk. When the job is requeued, daemon and trainers
# find each other again on other nodes, and the run goes on under the same name: script and job id.
#
# Once, on the login node:
#   rankd keys new "$USER" -o ~/rankd.key      # the daemon's keyring and your key, both files of yours alone
# Then:
#   sbatch deploy/slurm.sh
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
set -euo pipefail

SHARED=${SLURM_SUBMIT_DIR:-$PWD}                       # seen by every node
KEPT=$SHARED/rankd-$SLURM_JOB_ID                       # the history between one start of the job and the next
DISCOVERY=$KEPT.json
# While it is written, the history is on a disk of this node: on a network file system it is refused.
HISTORY=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/rankd-$SLURM_JOB_ID
WAIT_SECONDS=${WAIT_SECONDS:-120}                      # for the daemon, before the training begins without it

export RANKD_URL=file://$DISCOVERY                     # for trainers and `rankd tail`; read again at each connection
export RANKD_KEY=${RANKD_KEY:-$HOME/rankd.key}

if [ -d "$KEPT" ] && [ ! -d "$HISTORY" ]; then         # requeued: the run goes on, with its baselines
  cp -r "$KEPT" "$HISTORY"
fi

# --url: where it listens itself, rather than where RANKD_URL looks. Any ports; the file says which.
rankd serve --url tcp://0.0.0.0:0 --http off --device cpu --data "$HISTORY" --discovery "$DISCOVERY" &
DAEMON=$!

finish() {
  kill -TERM "$DAEMON" 2>/dev/null || true             # it finishes what it measures, within 20 s
  wait "$DAEMON" || true
  [ -d "$HISTORY" ] || return 0                        # it never came up
  rm -rf "$KEPT.new"
  # What is left on this node would be older than what other nodes add.
  cp -r "$HISTORY" "$KEPT.new" && rm -rf "$KEPT" && mv "$KEPT.new" "$KEPT" && rm -rf "$HISTORY"
}
trap finish EXIT
trap 'exit 143' TERM                                   # the batch system wants the nodes back

is_up() {                                              # the file may be of a daemon that was killed
  [ -f "$DISCOVERY" ] && python -c '
import json, socket, sys
host, port = json.load(open(sys.argv[1]))["push"].removeprefix("tcp://").rsplit(":", 1)
socket.create_connection((host, int(port)), timeout=5).close()' "$DISCOVERY" 2>/dev/null
}

until is_up; do                                        # else what a short run pushes first would be lost
  if [ "$SECONDS" -ge "$WAIT_SECONDS" ] || ! kill -0 "$DAEMON" 2>/dev/null; then
    echo "no daemon at $DISCOVERY: training begins without it" >&2
    break
  fi
  sleep 1
done

srun python train.py &                                 # in the background, so that a signal is heard at once
wait $!
