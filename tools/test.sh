#!/usr/bin/env bash
# Set up and run the tests. usage: bash tools/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

ruff check .
ruff format --check .
exec python -m pytest "$@"
