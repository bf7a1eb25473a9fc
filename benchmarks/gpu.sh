#!/usr/bin/env bash
# GPU benchmarks, one part at a time, each within nine minutes on one H200:
#
#   benchmarks/gpu.sh throughput|cifar10|fashion-mnist [--tiny] [--data PATH] [other options of the part]
#
# JSON goes to $OUT if set, else to benchmarks/results/. --tiny tries the part on any device, even a CPU, with synthetic
# data: it shows that the script runs, and measures nothing. Data sets are searched in $ALEXNET_DATA.
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
# use src/ if the package is not installed
PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" exec timeout 540 "${PYTHON:-python}" "$here/gpu_$part.py" "$@"
