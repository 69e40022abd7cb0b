#!/usr/bin/env bash
# Sets up, then runs every lint and every test; arguments go to pytest:  bash launch/test.sh -m "not long"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export JAX_PLATFORMS=cpu

status=0
.venv/bin/ruff check . || status=1
.venv/bin/ruff format --check . || status=1
.venv/bin/mypy precisionlm || status=1
.venv/bin/python -m pytest -n 2 --dist worksteal "$@" || status=$?
if [ "$status" -ne 0 ]; then
  echo "test: failed (status $status); see above" >&2
fi
exit "$status"
