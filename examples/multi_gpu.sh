#!/usr/bin/env bash
# Train on all GPUs of one machine; without GPUs, in several CPU processes.
#
#   examples/multi_gpu.sh DATA OUT [PROCESSES] [FLAGS OF alexnet train …]
#
# Rerun the same command after any interruption: training resumes from the last checkpoint.
# Tested with CPU processes; NOT tested on GPUs.
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

# --batch-size is the global batch size. If a process dies, restart up to three times from the last checkpoint.
exec torchrun --standalone --nproc-per-node "$processes" --max-restarts 3 \
  -m alexnet train imagenet-torchvision --data "$data" --out "$out" --resume "$@"
