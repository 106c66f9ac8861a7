#!/bin/sh
# Compile the CPU kernel ahead of time into the package's folder. PYTHON chooses the interpreter, CXX the compiler.
set -eu
cd "$(dirname "$0")"
exec "${PYTHON:-python}" setup.py build_ext --inplace
