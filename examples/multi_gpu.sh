#!/usr/bin/env bash
# Train on all GPUs of one machine; without a GPU, in as many processes as are asked for.
#
#   examples/multi_gpu.sh DATA OUT [PROCESSES] [FLAGS OF alexnet train …]
#
# Give the same line again after a stop, however it came about: training goes on from the last checkpoint.
# Tried with processes on a CPU; NOT tried on GPUs.
set -euo pipefail

data=${1:?the folder with train/ and val/}
out=${2:?the run folder}
shift 2
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
processes=$((gpus > 0 ? gpus : 2))
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  processes=$1
  shift
fi

# --batch-size is for all processes together. Three restarts where a process dies, each from the last checkpoint.
exec torchrun --standalone --nproc-per-node "$processes" --max-restarts 3 \
  -m alexnet train imagenet-torchvision --data "$data" --out "$out" --resume "$@"
