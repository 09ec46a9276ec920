#!/usr/bin/env bash
# TPU VMs and pods, over gcloud.
#
#   launch/tpu.sh create --name NAME --zone ZONE --type v5litepod-16 [--spot]                  one slice, now or never
#   launch/tpu.sh queue  --name NAME --zone ZONE --type v5litepod-16 [--spot] [--slices 2]     waits in line until it is there
#   launch/tpu.sh setup  --name NAME --zone ZONE [--slices 2]                                  copies this repository to every host and installs it
#   launch/tpu.sh run    --name NAME --zone ZONE [--slices 2] -- --config configs/sd15.py --data gs://... --output gs://...
#   launch/tpu.sh run    ... --type v5litepod-16 --spot --restart -- ...                       a slice that is taken away is queued, set up and run again
#   launch/tpu.sh stop   --name NAME --zone ZONE [--slices 2]                                  training saves and ends; run it again to go on
#   launch/tpu.sh delete --name NAME --zone ZONE                                               all of it, whatever made it
#
# Every command takes --dry-run (prints the commands instead), --project, and --runtime where the VM's image should be another.
# Several slices (--slices) are one run. `run` lasts as long as training does: start it in tmux. Environment: POLL, seconds between looks (30).
set -euo pipefail
source "$(dirname "$0")/common.sh"

commands="create queue setup run stop delete"
parse "$commands" "name zone project type runtime slices valid-until" "spot restart" "$@"
need name zone
named name
number slices
name=${option[name]} slices=${option[slices]-1} poll=${POLL:-30} folder=ivid2vid_jax
where=(--zone "${option[zone]}")
[ -z "${option[project]-}" ] || where+=(--project "${option[project]}")
spot=()
[ -z "${option[spot]-}" ] || spot=(--spot)

tpus() { call gcloud compute tpus "$@" "${where[@]}"; }

# ask KIND FORMAT: what the cloud says of the queued resource or the VM; empty where there is none.
ask() {
  gcloud compute tpus "$1" describe "$2" "${where[@]}" --format "value($3)" 2>/dev/null || true
}

# The image for a type of accelerator, unless --runtime names one.
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
    *) fail "--type ${option[type]}: is of no known generation (v4-*, v5litepod-*, v5p-*, v6e-*); name its image by --runtime" ;;
  esac
}

# The VMs of the run: NAME, or NAME-0, NAME-1, ... of several slices.
nodes() {
  if ((slices == 1)); then echo "$name"; else for ((i = 0; i < slices; i++)); do echo "$name-$i"; done; fi
}

create() {
  need type
  ((slices == 1)) || fail "create makes one slice; several meet only when they come as one: queue --slices $slices"
  local image
  image=$(runtime)
  tpus tpu-vm create "$name" --accelerator-type "${option[type]}" --version "$image" ${spot[@]+"${spot[@]}"}
}

queue() {
  need type
  local image what until=()
  image=$(runtime)
  if ((slices == 1)); then what=(--node-id "$name"); else what=(--node-count "$slices" --node-prefix "$name"); fi
  [ -z "${option[valid-until]-}" ] || until=(--valid-until-duration "${option[valid-until]}")
  tpus queued-resources create "$name" "${what[@]}" --accelerator-type "${option[type]}" --runtime-version "$image" \
    ${spot[@]+"${spot[@]}"} ${until[@]+"${until[@]}"}
  wait_for_it
}

# Looks until the queued resource is there.
wait_for_it() {
  if [ -n "$dry_run" ]; then
    show gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format "value(state.state)"
    return
  fi
  local state before=''
  while true; do
    state=$(ask queued-resources "$name" state.state)
    [ "$state" = "$before" ] || echo "$name: ${state:-not known yet}"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING) fail "$name: the request ended as $state; delete it and queue again, perhaps in another zone" ;;
    esac
    before=$state
    sleep "$poll"
  done
}

# on_hosts COMMAND: runs it on every host of every slice at the same time; fails where one of them does.
on_hosts() {
  local node pids=() bad=0
  for node in $(nodes); do
    if [ -n "$dry_run" ]; then
      tpus tpu-vm ssh "$node" --worker all --command "$1"
    else
      tpus tpu-vm ssh "$node" --worker all --command "$1" &
      pids+=($!)
    fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || bad=$?; done
  return "$bad"
}

setup() {
  local archive node
  archive=$(mktemp -d)/$folder.tar.gz
  call git -C "$home" archive --format tar.gz --prefix "$folder/" --output "$archive" HEAD
  for node in $(nodes); do tpus tpu-vm scp "$archive" "$node:$folder.tar.gz" --worker all; done
  rm -rf "$(dirname "$archive")"
  # the images' own Python is 3.10: uv brings one that is new enough
  on_hosts "tar xzf $folder.tar.gz && python3 -m pip install -q --user uv && cd $folder && python3 -m uv venv -q --allow-existing --python 3.12 ~/venv && \
python3 -m uv pip install -q --python ~/venv/bin/python -e '.[tpu,gcs]'"
}

stop() { on_hosts "pkill -TERM -f '[l]aunch/host.sh' || true"; }

# Training on every host; the words are quoted once more for the hosts' shells.
start() {
  local words
  words=$(show launch/host.sh "${train[@]}")
  on_hosts "cd $folder && PYTHON=~/venv/bin/python $words"
}

# Whether the cloud took a slice away, or is doing so. No answer is no yes: what is still there must not be deleted.
preempted() {
  local state node
  for node in $(nodes); do
    state="$(ask tpu-vm "$node" state) $(ask queued-resources "$name" state.state)"
    [[ ! $state =~ PREEMPTED|TERMINATED|SUSPEND ]] || return 0
  done
  return 1
}

run() {
  ((${#train[@]})) || fail "run: say what to train after --, e.g. -- --config configs/sd15.py --output gs://BUCKET/runs/sd15"
  if [ -z "${option[restart]-}" ]; then
    start
    return
  fi
  need type
  [[ " ${train[*]} " =~ --output[=\ ]gs:// ]] || fail "--restart: what a host holds is gone with it; give an --output on gs://"
  runtime >/dev/null
  if [ -n "$dry_run" ]; then
    start
    echo "# when a slice has been taken away:"
    delete
    queue
    setup
    start
    return
  fi
  until start; do
    sleep "$poll" # a slice that is being taken away is still READY for a moment
    preempted || fail "$name: training failed and the slice is still there: see what it said above"
    echo "$name: was taken away; queueing it again"
    delete
    queue
    setup
  done
}

delete() {
  local node
  if [ -n "$dry_run" ] || [ -n "$(ask queued-resources "$name" state.state)" ]; then
    tpus queued-resources delete "$name" --force --quiet # with its VMs
    [ -n "$dry_run" ] || return 0
    echo "# or, of one that create made:"
  fi
  for node in $(nodes); do
    [ -n "$dry_run" ] || [ -n "$(ask tpu-vm "$node" state)" ] || continue
    tpus tpu-vm delete "$node" --quiet
  done
}

"$command"
