#!/usr/bin/env bash
# Makes .venv with the pinned dependencies (constraints.txt). Does nothing where that is already done.
# PYTHON=/path/to/python chooses the interpreter; otherwise the newest tested one found is used. EXTRAS=tpu,gcs installs
# those of pyproject.toml instead of dev.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

candidates=(python3.13 python3.12 python3.11 python3)
if [ -n "${PYTHON:-}" ]; then
  candidates=("$PYTHON")
fi
python=""
for candidate in "${candidates[@]}"; do
  if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "setup: none of ${candidates[*]} is a Python 3.11 or newer with venv and pip;" \
    "install one or set PYTHON=/path/to/python" >&2
  exit 2
fi

# What the environment depends on: the interpreter, this folder (scripts in .venv name it) and the two files.
read -r -d '' describe <<'PYTHON_CODE' || true
import hashlib, os, sys
files = b"".join(open(name, "rb").read() for name in ("pyproject.toml", "constraints.txt"))
extras = os.environ.get("EXTRAS", "dev")
print(os.path.realpath(sys.executable), sys.version.split()[0], os.getcwd(), extras, hashlib.sha256(files).hexdigest())
PYTHON_CODE
wanted=$("$python" -c "$describe")
stamp=.venv/installed
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi

echo "setup: installing into .venv with $("$python" --version) (a minute or two)"
rm -f "$stamp"
"$python" -m venv --clear .venv
.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[${EXTRAS:-dev}]"
echo "$wanted" >"$stamp"
