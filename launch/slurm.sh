#!/usr/bin/env bash
# GPU nodes under SLURM: one process a GPU, over sbatch.
#
#   launch/slurm.sh run    --nodes 2 --gpus 8 [--name NAME] [--time 24:00:00] [--partition P] [--account A] [--python ~/venv/bin/python] [--cpus 8] \
#                          -- --config configs/sd15.py --data DIR --output RUN
#   launch/slurm.sh delete --name NAME
#
# --gpus: of a node. RUN and DIR lie where every node sees them. Two minutes before its time is over training saves, and the job lines up again by itself;
# so does a job that is preempted. --dry-run prints the command.
set -euo pipefail
source "$(dirname "$0")/common.sh"

parse "run delete" "name nodes gpus cpus time partition account python" "" "$@"
for each in nodes gpus cpus; do number "$each"; done
option[name]=${option[name]-ivid2vid}
named name

run() {
  need nodes gpus
  ((${#train[@]})) || fail "run: say what to train after --, e.g. -- --config configs/sd15.py --data DIR --output RUN"
  local words=(--job-name "${option[name]}" --nodes "${option[nodes]}" --ntasks-per-node "${option[gpus]}" --gpus-per-node "${option[gpus]}")
  words+=(--cpus-per-task "${option[cpus]-8}" --time "${option[time]-24:00:00}")
  [ -z "${option[partition]-}" ] || words+=(--partition "${option[partition]}")
  [ -z "${option[account]-}" ] || words+=(--account "${option[account]}")
  words+=(--chdir "$home" --export "ALL,PYTHON=${option[python]-python}")
  call sbatch "${words[@]}" "$home/launch/job.sbatch" "${train[@]}"
}

delete() { call scancel --name "${option[name]}"; }

"$command"
