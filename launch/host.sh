#!/usr/bin/env bash
# One host's part of a run: trains, and starts again when training dies. Every launcher ends here, on every host with the same words.
#
#   launch/host.sh --config configs/sd15.py --data gs://bucket/triplets --output gs://bucket/runs/sd15
#
# Ends with 0 when training has ended well, 2 for a user's mistake, 143 when it was itself told to stop (SIGTERM: training saves first), so that a
# scheduler starts it anew; else with training's own code once RESTARTS starts (100) have failed. Hosts that lose one of theirs all die and meet again.
set -uo pipefail

restarts=${RESTARTS:-100} pause=${PAUSE:-10} python=${PYTHON:-python}
stopped='' child=''
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT

for ((start = 0; ; start++)); do
  "$python" -m ivid2vid_jax.train "$@" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null # told so before the child had a name
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # the trap ended the first wait, not training
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
