#!/usr/bin/env bash
# On every worker of a slice (launch/tpu_vm.sh): the command, after what a lost connection may have left running has
# stopped; its exit code stays in ~/.precisionlm/code.   bash launch/worker.sh train CONFIG --out /shared/runs
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
kept=$HOME/.precisionlm
mkdir -p "$kept"
rm -f "$kept/code"
if pid=$(cat "$kept/pid" 2>/dev/null) && grep -qsa precisionlm "/proc/$pid/cmdline"; then
  kill -TERM "$pid"
  while kill -0 "$pid" 2>/dev/null; do sleep 1; done
fi

# shellcheck disable=SC2086  # PRECISIONLM may be several words
${PRECISIONLM:-.venv/bin/precisionlm} "$@" --distributed &
pid=$!
echo "$pid" >"$kept/pid"
trap 'kill -TERM "$pid"' TERM HUP
code=143
while kill -0 "$pid" 2>/dev/null; do  # a signal ends a wait, not the command
  wait "$pid"
  code=$?
done
echo "$code" >"$kept/code"
exit "$code"
