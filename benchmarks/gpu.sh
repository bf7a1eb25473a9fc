#!/usr/bin/env bash
# GPU benchmarks, one part at a time, each within nine minutes on one H200; gpu.py says more:
#
#   benchmarks/gpu.sh throughput|cifar10|fashion-mnist [--tiny] [--data PATH] [other options of the part]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# use src/ if the package is not installed
PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" exec timeout 540 "${PYTHON:-python}" "$here/gpu.py" "$@"
