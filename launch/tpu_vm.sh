#!/usr/bin/env bash
# A run or a sweep on a Cloud TPU slice, asked for as a queued resource and again whenever it is taken away.
#   TPU_NAME=plm TPU_ZONE=us-west4-a TPU_TYPE=v5litepod-16 TPU_RUNTIME=v2-alpha-tpuv5-lite \
#     TPU_NFS=10.0.0.2:/share bash launch/tpu_vm.sh train configs/demo.yaml --out /shared/runs
# TPU_NFS is a file system with locks (Filestore), mounted at /shared on every worker for data and runs; checkpoints may
# go to a bucket (--checkpoint.folder gs://BUCKET/runs). TPU_SPOT=0 asks for on-demand machines; TPU_KEEP=1 leaves the slice when all is done; TPU_SETUP is what installs the
# copied tree on each worker. Needs gcloud, logged in.
# Exit code 75 of a worker, a killed worker or a lost slice: the same command again; any other code ends.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
: "${TPU_NAME:?a name for the slice}" "${TPU_ZONE:?such as us-west4-a}" "${TPU_TYPE:?such as v5litepod-16}"
: "${TPU_RUNTIME:?such as v2-alpha-tpuv5-lite, v2-alpha-tpuv5 or v2-alpha-tpuv6e}"
[ "$#" -gt 0 ] || { echo "tpu_vm: which command? such as train CONFIG --out /shared/runs" >&2; exit 2; }
wait=${TPU_WAIT:-30}  # seconds between two looks at the queue
# The machines' own Python is too old.
# shellcheck disable=SC2016  # the workers' shells read it
setup='python3 -m pip install -q --user uv && ~/.local/bin/uv python install -q 3.12 &&
  PYTHON=$(~/.local/bin/uv python find 3.12) EXTRAS=tpu,gcs bash launch/setup.sh'

queue() {
  local verb=$1
  shift
  gcloud compute tpus queued-resources "$verb" "$TPU_NAME" --zone "$TPU_ZONE" "$@"
}

state() { queue describe --format 'value(state.state)' 2>/dev/null; }

everywhere() { gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$TPU_ZONE" --worker=all --command="$1"; }

create() {
  local spot=()
  [ "${TPU_SPOT:-1}" = 0 ] || spot=(--spot)
  [ -z "$(state)" ] || queue delete --force --quiet || return 1
  queue create --node-id "$TPU_NAME" --accelerator-type "$TPU_TYPE" --runtime-version "$TPU_RUNTIME" "${spot[@]}" || return 1
  until [ "$(state)" = ACTIVE ]; do
    case $(state) in FAILED | SUSPENDED) return 1 ;; esac
    sleep "$wait"
  done
}

install() {
  everywhere 'rm -rf precisionlm && mkdir -p precisionlm' &&
    gcloud compute tpus tpu-vm scp --recurse precisionlm configs launch pyproject.toml constraints.txt README.md \
      "$TPU_NAME:precisionlm/" --zone "$TPU_ZONE" --worker=all &&
    everywhere "cd precisionlm && ${TPU_SETUP:-$setup}" &&
    if [ -n "${TPU_NFS:-}" ]; then
      everywhere "sudo apt-get install -qy nfs-common && sudo mkdir -p /shared && sudo mount ${TPU_NFS@Q} /shared"
    fi
}

command=$(printf ' %q' "$@")
while true; do
  if [ "$(state)" != ACTIVE ]; then
    if ! { create && install; }; then
      echo "tpu_vm: no slice or no installation on it; again in $wait s" >&2
      sleep "$wait"
      continue
    fi
  fi
  everywhere "bash precisionlm/launch/worker.sh$command" && break
  [ "$(state)" = ACTIVE ] || continue  # taken away
  codes=$(everywhere 'cat ~/.precisionlm/code' 2>/dev/null | sort -un | tr '\n' ' ')
  case " $codes " in
    *" 75 "* | *" 134 "* | *" 137 "*) echo "tpu_vm: workers ended with $codes; again" >&2 ;;
    *) echo "tpu_vm: workers ended with $codes" >&2; exit "${codes%% *}" ;;
  esac
done
[ "${TPU_KEEP:-0}" = 1 ] || queue delete --force --quiet
