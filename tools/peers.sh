#!/usr/bin/env bash
# Environments with the load clients that benchmarks/peers.py and benchmarks/agreement.py compare with:
#   tools/peers.sh FOLDER VLLM [PYTHON]    # VLLM is the folder that tools/vllm_cpu.sh made; 7 GB, about five minutes
# Each client has an environment of its own. vllm bench serve is in VLLM; what its extra "bench" adds comes beside it.
set -euo pipefail
folder=$1
vllm=$(realpath "$2")
python=${3:-python3}

mkdir -p "$folder"
ln -sfn "$vllm" "$folder/vllm"
if [[ ! -d $folder/vllm-bench/pandas ]]; then
    "$vllm/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/vllm-bench" \
        pandas==3.1.1 python-dateutil==4.0.0 pytz==2026.6 tzdata==2026.6 six==1.17.0
fi
for pinned in aiperf==0.13.0 guidellm==0.8.1; do
    name=${pinned%%==*}
    [[ -x $folder/$name/venv/bin/$name ]] && continue
    "$python" -m venv "$folder/$name/venv"
    "$folder/$name/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$pinned"
done
