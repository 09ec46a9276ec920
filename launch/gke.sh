#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet, with kubectl. JobSet must be installed in the
# cluster: https://jobset.sigs.k8s.io
#
#   launch/gke.sh run    --name NAME --image IMAGE --accelerator tpu-v5-lite-podslice \
#                        --topology 4x4 [--slices 2] [--spot] [--account ACCOUNT] \
#                        -- --config configs/sd15.py --data gs://... --output gs://...
#   launch/gke.sh logs   --name NAME
#   launch/gke.sh delete --name NAME
#
# IMAGE is built from launch/Dockerfile.tpu. ACCOUNT is a Kubernetes service account with access to
# the bucket (default: default). After a preemption of spot slices, the JobSet restarts and training
# resumes. Every command takes --context, and --dry-run, which prints the manifest and the command.
set -euo pipefail
source "$(dirname "$0")/common.sh"

parse "run logs delete" "name image accelerator topology slices account context" "spot" "$@"
need name
resource_name name
number slices
kubectl=(kubectl)
[ -z "${option[context]-}" ] || kubectl+=(--context "${option[context]}")

# Chips of one slice: the product of its sides.
chips() {
  [[ ${option[topology]} =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
    fail "--topology ${option[topology]} must be sides such as 4x4 or 2x2x4"
  echo $((${option[topology]//x/*}))
}

# json WORDS: prints a JSON list of strings, which is also YAML.
json() {
  local word out='' comma=''
  for word in "$@"; do
    [[ $word != *[[:cntrl:]]* ]] ||
      fail "an argument of training contains a line break or another control character"
    word=${word//\\/\\\\}
    out+="$comma\"${word//\"/\\\"}\""
    comma=', '
  done
  echo "[$out]"
}

# manifest ARGS: prints launch/jobset.yaml with its placeholders filled in.
manifest() {
  local all hosts text
  all=$(chips)
  case "${option[topology]}" in
    1x1 | 2x2 | 2x4) hosts=1 ;; # a single host has up to 8 chips
    *) hosts=$((all / 4)) ;;    # hosts of larger slices have 4 chips
  esac
  ((hosts > 0 && all % hosts == 0)) ||
    fail "--topology ${option[topology]} has $all chips, which is not a multiple of 4 per host"
  text=$(grep -v '^#' "$home/launch/jobset.yaml")
  [ -n "${option[spot]-}" ] || text=$(grep -v gke-spot <<<"$text")
  text=${text//SLICES/"${option[slices]-1}"}
  text=${text//HOSTS/"$hosts"}
  text=${text//ACCOUNT/"${option[account]-default}"}
  text=${text//ACCELERATOR/"${option[accelerator]}"}
  text=${text//TOPOLOGY/"${option[topology]}"}
  text=${text//SPOT/true}
  text=${text//CHIPS/"$((all / hosts))"}
  text=${text//NAME/"${option[name]}"}
  text=${text//IMAGE/"${option[image]}"}
  printf '%s\n' "${text/ARGS/"$1"}"
}

run() {
  need image accelerator topology
  ((${#train[@]})) ||
    fail "run: give the arguments of training after --, e.g." \
      "-- --config configs/sd15.py --output gs://BUCKET/runs/sd15"
  [[ " ${train[*]} " =~ --output[=\ ]gs:// ]] ||
    fail "the disk of a pod is temporary: give an --output on gs://"
  local args text
  args=$(json "${train[@]}")
  text=$(manifest "$args")
  [ -z "$dry_run" ] || printf '%s\n' "$text"
  call "${kubectl[@]}" apply --filename - <<<"$text"
}

logs() {
  call "${kubectl[@]}" logs --follow --prefix --max-log-requests 256 \
    --selector "jobset.sigs.k8s.io/jobset-name=${option[name]}"
}

delete() { call "${kubectl[@]}" delete jobset "${option[name]}"; }

"$command"
