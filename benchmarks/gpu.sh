#!/bin/sh
# On one GPU: the poster's table at the thesis's size, then speed beside other packages: sh benchmarks/gpu.sh [OVERLAY ...]
# Run again, it resumes: what is finished is not done again. DEVICE=cpu and SPEED, options of speed.py, are for tests.
set -eu
cd "$(dirname "$0")/.."
: "${DEVICE:=cuda}"
# Snakemake's own lock, which a killed run leaves, is of no use: jobs have theirs, which end with them.
python -m snakemake --nolock --cores "${CORES:-$(nproc)}" --config device="$DEVICE" \
    --configfile workflow/config/mnist.yaml workflow/config/mnist-gpu.yaml "$@"
speed=results/speed/$DEVICE.json
# shellcheck disable=SC2086 # several words
[ -s "$speed" ] || PYTHONPATH=. python benchmarks/speed.py --device "$DEVICE" ${SPEED:---batch 512 --steps 20} --json "$speed"
