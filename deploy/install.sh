#!/bin/sh
# JAX for an accelerator at the version of constraints.txt: install.sh cpu|cuda13|tpu
set -eu
accelerator=${1:-cpu}
jax=$(grep '^jax==' constraints.txt)
case "$accelerator" in
  cpu) wanted=$jax ;;
  cuda13 | tpu) wanted="jax[$accelerator]==${jax#jax==}" ;;
  *)
    echo "install.sh: expected cpu, cuda13 or tpu, found $accelerator" >&2
    exit 2
    ;;
esac
pip install --no-cache-dir -c constraints.txt "$wanted"
