#!/usr/bin/env bash
# What needs a GPU, a part at a time, each within nine minutes on one H200:
#
#   benchmarks/gpu.sh throughput|cifar10|fashion-mnist [--tiny] [--data PATH] [more of the part's own options]
#
# JSON goes to $OUT if set, else to benchmarks/results/. --tiny tries the part on whatever is here, a CPU included, with
# made-up data: it proves that the script runs, and measures nothing. Pictures are looked for in $ALEXNET_DATA.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
case "${1-}" in
  throughput | cifar10 | fashion-mnist) part=${1//-/_} ;;
  *)
    echo "usage: benchmarks/gpu.sh throughput|cifar10|fashion-mnist [--tiny] [--data PATH]" >&2
    exit 2
    ;;
esac
shift
# a copy that was not installed is found in src/
PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" exec timeout 540 "${PYTHON:-python}" "$here/gpu_$part.py" "$@"
