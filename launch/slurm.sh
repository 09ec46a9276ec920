#!/usr/bin/env bash
# Trains on GPU nodes under SLURM, with one process per GPU.
#
#   launch/slurm.sh run    --nodes 2 --gpus 8 [--name NAME] [--time 24:00:00] [--partition P] \
#                          [--account A] [--python ~/venv/bin/python] [--cpus 8] \
#                          -- --config configs/sd15.py --data DIR --output RUN
#   launch/slurm.sh delete --name NAME
#
# --gpus is per node, --cpus per process. All nodes must see DIR and RUN. Training saves two minutes
# before the time limit or a preemption, and the job queues itself again. --dry-run prints the
# command instead of running it.
set -euo pipefail
source "$(dirname "$0")/common.sh"

parse "run delete" "name nodes gpus cpus time partition account python" "" "$@"
for name in nodes gpus cpus; do number "$name"; done
option[name]=${option[name]-ivid2vid}
resource_name name

run() {
  need nodes gpus
  ((${#train[@]})) ||
    fail "run: give the arguments of training after --, e.g." \
      "-- --config configs/sd15.py --data DIR --output RUN"
  local words=(--job-name "${option[name]}" --nodes "${option[nodes]}")
  words+=(--ntasks-per-node "${option[gpus]}" --gpus-per-node "${option[gpus]}")
  words+=(--cpus-per-task "${option[cpus]-8}" --time "${option[time]-24:00:00}")
  [ -z "${option[partition]-}" ] || words+=(--partition "${option[partition]}")
  [ -z "${option[account]-}" ] || words+=(--account "${option[account]}")
  words+=(--chdir "$home" --export "ALL,PYTHON=${option[python]-python}")
  call sbatch "${words[@]}" "$home/launch/job.sbatch" "${train[@]}"
}

delete() { call scancel --name "${option[name]}"; }

"$command"
