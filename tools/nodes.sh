# Sourced by the launchers after they set `gpus`: shares the processes evenly over machines of GPUS_PER_NODE (default 8).
# Sets `per_node` and `nodes`.
per_node=${GPUS_PER_NODE:-8}
if [ "$gpus" -lt "$per_node" ]; then per_node=$gpus; fi
if [ $((gpus % per_node)) -ne 0 ]; then
  echo "$0: $gpus processes cannot be shared evenly by machines of GPUS_PER_NODE=$per_node" >&2
  exit 2
fi
nodes=$((gpus / per_node))
