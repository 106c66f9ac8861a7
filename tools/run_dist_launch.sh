#!/usr/bin/env bash
# Train on GPUS processes over one or several machines with torchrun (on the CPU with gloo where there is no GPU).
# usage: [GPUS_PER_NODE=8] [NODE_RANK=0] [MASTER_ADDR=127.0.0.1] [MASTER_PORT=29500] \
#          bash tools/run_dist_launch.sh GPUS CONFIG [overrides]
# Start it once on each machine, with the same arguments and NODE_RANK = 0, 1, ...
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 GPUS CONFIG [overrides]" >&2
  exit 2
fi
gpus=$1 config=$2
shift 2
source "$(dirname "${BASH_SOURCE[0]}")/nodes.sh"

exec torchrun --nnodes "$nodes" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$per_node" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
  --module lightning_xai fit --config "$config" \
  --trainer.devices "$per_node" --trainer.num_nodes "$nodes" --trainer.strategy ddp "$@"
