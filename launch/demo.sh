#!/usr/bin/env bash
# The whole job in miniature: data, quantized training, sweep, table, fit, report.  bash launch/demo.sh [demo options]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
exec .venv/bin/precisionlm demo --out demo_out "$@"
