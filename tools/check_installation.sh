#!/usr/bin/env bash
# Install ms_deform_attn into fresh virtual environments and run its checks in each: with and without a compiler on the
# PATH, with a cache that cannot be written, with no folder that can, with compiling forbidden, built ahead of time.
# usage: [PYTHON=python3] [TORCH=torch==2.11.0] bash tools/check_installation.sh [scenario ...]   (five to ten minutes)
#
# An environment takes torch from the interpreter that makes it (a path file names its site-packages) unless TORCH says
# what to download instead; the package itself is always installed anew. Exits with 1 if a scenario is not as it should.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
command -v c++ >/dev/null || { echo "check_installation: there is no compiler (c++) on the PATH" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
touch "$scratch/file"
unwritable=$scratch/file/cache # nobody can make a folder below a file, root neither
failed=0

# A fresh environment with torch and the package; no compiler is in sight while the package is installed.
install() { # folder
  "$python" -m venv "$1"
  if [ -n "${TORCH:-}" ]; then
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check "$TORCH" numpy setuptools
  else
    "$python" -c 'import torch; print(torch.__path__[0].rsplit("/", 1)[0])' >"$scratch/torch.pth"
    cp "$scratch/torch.pth" "$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  fi
  cp -R "$root/models/ops" "$1/ops"
  rm -rf "$1"/ops/build "$1"/ops/*.egg-info "$1"/ops/ms_deform_attn/*.so
  mv "$1/ops/test.py" "$1/test.py" # beside it the package's own folder would be imported instead of the installed one
  local isolation= # where setuptools can make a wheel already, nothing is downloaded
  "$1/bin/python" -c 'import setuptools.command.bdist_wheel' 2>/dev/null && isolation=--no-build-isolation
  PATH=$1/bin "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps $isolation "$1/ops"
}

# Run the checks; right if they pass, by the expected path, and the expected words are said once ("": nothing is said).
check() { # scenario, path, words on stderr, VARIABLE=value ...
  local scenario=$1 path=$2 words=$3 folder=$scratch/$1 verdict=works
  shift 3
  [ -d "$folder" ] || install "$folder"
  mkdir -p "$folder/home" "$folder/temporary"
  env -i -C "$folder/home" HOME="$folder/home" TMPDIR="$folder/temporary" PATH="$folder/bin" OMP_NUM_THREADS=1 "$@" \
    "$folder/bin/python" "$folder/test.py" --device cpu >"$folder/out" 2>"$folder/err" ||
    verdict="FAILS: exit status $?"
  grep -q "^paths on cpu: $path[ ,]" "$folder/out" || verdict="FAILS: the path should be $path"
  grep -q '^all checking is True$' "$folder/out" || verdict="FAILS: a check"
  if [ -n "$words" ]; then
    [ "$(grep -c "$words" "$folder/err")" = 1 ] || verdict="FAILS: stderr should say once: $words"
  elif [ -s "$folder/err" ]; then
    verdict="FAILS: stderr should be empty"
  fi
  echo "$scenario $verdict ($(sed -n 's/^\(paths on [^(]*\) .*/\1/p' "$folder/out")," \
    "$(grep -c '^\* True' "$folder/out") checks True, $(grep -c '^\* False' "$folder/out") False)"
  [ "$verdict" = works ] || { failed=1 && tail -n 20 "$folder/err" "$folder/out" >&2; }
}

no_compiler() { check no_compiler weighted_rows "no C++ compiler .* is on the PATH"; }

compiler() {
  check compiler compiled "compiling the CPU kernel once" PATH="$PATH"
  check compiler compiled "" # found again, with no compiler in sight
}

unwritable_cache() {
  check unwritable_cache compiled "compiling the CPU kernel once .* into $scratch/unwritable_cache/temporary" \
    PATH="$PATH" MS_DEFORM_ATTN_CACHE="$unwritable"
}

nowhere_to_write() { # the name of the private folder is taken, as by another user
  mkdir "$scratch/taken"
  touch "$scratch/taken/ms_deform_attn-$(id -u)"
  check nowhere_to_write weighted_rows "no folder can be used" \
    PATH="$PATH" MS_DEFORM_ATTN_CACHE="$unwritable" TMPDIR="$scratch/taken"
}

compiling_forbidden() { check compiling_forbidden weighted_rows "" PATH="$PATH" MS_DEFORM_ATTN_COMPILE=0; }

ahead_of_time() {
  install "$scratch/ahead_of_time"
  PYTHON=$scratch/ahead_of_time/bin/python sh "$scratch/ahead_of_time/ops/make.sh"
  check ahead_of_time compiled "" PYTHONPATH="$scratch/ahead_of_time/ops" MS_DEFORM_ATTN_COMPILE=0
}

scenarios=(no_compiler compiler unwritable_cache nowhere_to_write compiling_forbidden ahead_of_time)
for scenario in "${@:-${scenarios[@]}}"; do
  [[ " ${scenarios[*]} " = *" $scenario "* ]] || { echo "$scenario is none of: ${scenarios[*]}" >&2; exit 1; }
  "$scenario"
done
exit $failed
