#!/usr/bin/env bash
# Train on GPUS processes as one SLURM job: srun starts a process per GPU, Lightning finds its rank in SLURM's variables.
# usage: [GPUS_PER_NODE=8] [CPUS_PER_TASK=4] [SRUN_ARGS=...] \
#          bash tools/run_dist_slurm.sh PARTITION JOB GPUS CONFIG [overrides]
# A job that is requeued or submitted again with `--ckpt_path last` goes on where it stopped.
set -euo pipefail
if [ $# -lt 4 ]; then
  echo "usage: $0 PARTITION JOB GPUS CONFIG [overrides]" >&2
  exit 2
fi
partition=$1 job=$2 gpus=$3 config=$4
shift 4
source "$(dirname "${BASH_SOURCE[0]}")/nodes.sh"
read -r -a extra <<<"${SRUN_ARGS:-}"

exec srun --partition "$partition" --job-name "$job" --nodes "$nodes" --ntasks "$gpus" --ntasks-per-node "$per_node" \
  --gres "gpu:$per_node" --cpus-per-task "${CPUS_PER_TASK:-4}" --kill-on-bad-exit=1 ${extra[@]+"${extra[@]}"} \
  python -m lightning_xai fit --config "$config" \
  --trainer.devices "$per_node" --trainer.num_nodes "$nodes" --trainer.strategy ddp "$@"
