#!/usr/bin/env bash
# Trains on TPU VMs and pods, with gcloud.
#
# Create one slice now, or wait in a queue for one or several:
#   launch/tpu.sh create --name NAME --zone ZONE --type v5litepod-16 [--spot]
#   launch/tpu.sh queue  --name NAME --zone ZONE --type v5litepod-16 [--spot] [--slices 2]
# Copy this repository to every host and install it:
#   launch/tpu.sh setup  --name NAME --zone ZONE [--slices 2]
# Train; with --restart, a preempted slice is queued, set up and run again:
#   launch/tpu.sh run    --name NAME --zone ZONE [--slices 2] \
#                        [--restart --type v5litepod-16 [--spot]] \
#                        -- --config configs/sd15.py --data gs://... --output gs://...
# Save and stop training; `run` resumes it:
#   launch/tpu.sh stop   --name NAME --zone ZONE [--slices 2]
# Delete the slices:
#   launch/tpu.sh delete --name NAME --zone ZONE
#
# Every command takes --project, --runtime (another VM image) and --dry-run (prints the commands).
# Several slices train one run together. `run` lasts as long as training: start it in tmux.
# Environment: POLL, seconds between checks of the cloud's state (default 30).
set -euo pipefail
source "$(dirname "$0")/common.sh"

commands="create queue setup run stop delete"
parse "$commands" "name zone project type runtime slices valid-until" "spot restart" "$@"
need name zone
resource_name name
number slices
name=${option[name]} slices=${option[slices]-1} poll=${POLL:-30} folder=ivid2vid_jax
where=(--zone "${option[zone]}")
[ -z "${option[project]-}" ] || where+=(--project "${option[project]}")
spot=()
[ -z "${option[spot]-}" ] || spot=(--spot)

tpus() { call gcloud compute tpus "$@" "${where[@]}"; }

# ask KIND NAME FIELD: a field of a queued resource or a VM; empty if it does not exist.
ask() {
  gcloud compute tpus "$1" describe "$2" "${where[@]}" --format "value($3)" 2>/dev/null || true
}

# The VM image for the accelerator type, unless --runtime gives one.
runtime() {
  case "${option[runtime]-}${option[type]}" in
    "${option[type]}") ;;
    *) echo "${option[runtime]}" && return ;;
  esac
  case "${option[type]}" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type ${option[type]}: unknown generation (known: v4-*, v5litepod-*, v5p-*, v6e-*);" \
      "give its image with --runtime" ;;
  esac
}

# The VMs of the run: NAME, or NAME-0, NAME-1, ... for several slices.
nodes() {
  if ((slices == 1)); then
    echo "$name"
  else
    for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
  fi
}

create() {
  need type
  ((slices == 1)) || fail "create makes one slice; for several use queue --slices $slices"
  local image
  image=$(runtime)
  tpus tpu-vm create "$name" --accelerator-type "${option[type]}" --version "$image" \
    ${spot[@]+"${spot[@]}"}
}

queue() {
  need type
  local image size until=()
  image=$(runtime)
  if ((slices == 1)); then
    size=(--node-id "$name")
  else
    size=(--node-count "$slices" --node-prefix "$name")
  fi
  [ -z "${option[valid-until]-}" ] || until=(--valid-until-duration "${option[valid-until]}")
  tpus queued-resources create "$name" "${size[@]}" --accelerator-type "${option[type]}" \
    --runtime-version "$image" ${spot[@]+"${spot[@]}"} ${until[@]+"${until[@]}"}
  wait_until_active
}

# Waits until the queued resource is active.
wait_until_active() {
  if [ -n "$dry_run" ]; then
    show gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
      --format "value(state.state)"
    return
  fi
  local state previous=''
  while true; do
    state=$(ask queued-resources "$name" state.state)
    [ "$state" = "$previous" ] || echo "$name: ${state:-no state yet}"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        fail "$name: the request ended as $state; delete it and queue again," \
          "perhaps in another zone"
        ;;
    esac
    previous=$state
    sleep "$poll"
  done
}

# on_hosts COMMAND: runs it on all hosts of all slices at once; fails if it fails on one.
on_hosts() {
  local node pids=() code=0
  for node in $(nodes); do
    if [ -n "$dry_run" ]; then
      tpus tpu-vm ssh "$node" --worker all --command "$1"
    else
      tpus tpu-vm ssh "$node" --worker all --command "$1" &
      pids+=($!)
    fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || code=$?; done
  return "$code"
}

setup() {
  local archive node
  archive=$(mktemp -d)/$folder.tar.gz
  call git -C "$home" archive --format tar.gz --prefix "$folder/" --output "$archive" HEAD
  for node in $(nodes); do tpus tpu-vm scp "$archive" "$node:$folder.tar.gz" --worker all; done
  rm -rf "$(dirname "$archive")"
  # the images have Python 3.10; uv installs a newer one
  on_hosts "tar xzf $folder.tar.gz && python3 -m pip install -q --user uv && cd $folder && \
python3 -m uv venv -q --allow-existing --python 3.12 ~/venv && \
python3 -m uv pip install -q --python ~/venv/bin/python -e '.[tpu,gcs]'"
}

stop() { on_hosts "pkill -TERM -f '[l]aunch/host.sh' || true"; }

# Trains on every host; the arguments are quoted for the hosts' shells.
start() {
  local words
  words=$(show launch/host.sh "${train[@]}")
  on_hosts "cd $folder && PYTHON=~/venv/bin/python $words"
}

# Whether a slice has been or is being preempted. Without an answer of the cloud it is not: a slice
# that may still exist must not be deleted.
preempted() {
  local state node
  for node in $(nodes); do
    state="$(ask tpu-vm "$node" state) $(ask queued-resources "$name" state.state)"
    [[ ! $state =~ PREEMPTED|TERMINATED|SUSPEND ]] || return 0
  done
  return 1
}

run() {
  ((${#train[@]})) ||
    fail "run: give the arguments of training after --, e.g." \
      "-- --config configs/sd15.py --output gs://BUCKET/runs/sd15"
  if [ -z "${option[restart]-}" ]; then
    start
    return
  fi
  need type
  [[ " ${train[*]} " =~ --output[=\ ]gs:// ]] ||
    fail "--restart: the disk of a preempted host is lost; give an --output on gs://"
  runtime >/dev/null
  if [ -n "$dry_run" ]; then
    start
    echo "# after a preemption:"
    delete
    queue
    setup
    start
    return
  fi
  until start; do
    sleep "$poll" # a slice that is being preempted is READY for a moment
    preempted || fail "$name: training failed and the slice is still there; see its output above"
    echo "$name: preempted; queueing it again"
    delete
    queue
    setup
  done
}

delete() {
  local node
  if [ -n "$dry_run" ] || [ -n "$(ask queued-resources "$name" state.state)" ]; then
    tpus queued-resources delete "$name" --force --quiet # deletes its VMs too
    [ -n "$dry_run" ] || return 0
    echo "# or, if it was made by create:"
  fi
  for node in $(nodes); do
    [ -n "$dry_run" ] || [ -n "$(ask tpu-vm "$node" state)" ] || continue
    tpus tpu-vm delete "$node" --quiet
  done
}

"$command"
