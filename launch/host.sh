#!/usr/bin/env bash
# Trains on one host, and restarts training if it fails. Every launcher runs this script on every
# host, with the same arguments.
#
#   launch/host.sh --config configs/sd15.py --data gs://bucket/triplets --output gs://bucket/run
#
# Exit codes: 0: training has finished; 2: invalid input; 143: stopped by SIGTERM after training has
# saved, so that a scheduler starts it again; other codes: training failed RESTARTS + 1 times
# (RESTARTS is 100 by default). If one host fails, training fails on all hosts, and all restart.
set -uo pipefail

restarts=${RESTARTS:-100} pause=${PAUSE:-10} python=${PYTHON:-python}
stopped='' child=''
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT

for ((start = 0; ; start++)); do
  "$python" -m ivid2vid_jax.train "$@" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null # SIGTERM came before child was set
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # the trap interrupted wait; training still runs
    wait "$child"
    code=$?
  done
  [ -z "$stopped" ] || exit 143
  if ((code == 0 || code == 2 || start >= restarts)); then exit "$code"; fi
  echo "host.sh: training ended with code $code; start $((start + 2)) in $pause s" >&2
  sleep "$pause" &
  wait $!
  [ -z "$stopped" ] || exit 143
done
