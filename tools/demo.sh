#!/usr/bin/env bash
# Train a small Deformable DETR from scratch on the embedded world, on the CPU, and draw what it looks at.
# usage: bash tools/demo.sh [--quick] [overrides, e.g. --run_dir runs/mine]     (--quick: a smoke run of one minute)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

config=configs/demo.yaml
if [ "${1:-}" = --quick ]; then
  config=configs/demo_quick.yaml
  shift
fi
exec lightning-xai fit --config "$config" "$@"
