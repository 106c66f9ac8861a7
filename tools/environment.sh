# Sourced by the scripts of this folder: a virtual environment `.venv` in the checkout, made once and reused.
# PYTHON chooses the interpreter that makes it (default python3); VENV chooses another folder.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$root/.venv}

"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "tools: ${PYTHON:-python3} is older than Python 3.10; set PYTHON to a newer interpreter" >&2
  exit 1
}
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"

# Install again only when the list of requirements changed since the last complete installation.
wanted=$(cksum <"$root/pyproject.toml")
if [ "$(cat "$VENV/installed" 2>/dev/null)" != "$wanted" ]; then
  echo "tools: installing lightning_xai and its requirements into $VENV (once)" >&2
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root[dev]"
  echo "$wanted" >"$VENV/installed"
fi
PATH=$VENV/bin:$PATH
