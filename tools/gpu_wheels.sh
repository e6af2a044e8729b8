#!/usr/bin/env bash
# Collects what megagpt and tools/gpu_check.py need on a GPU machine without a network that has Python 3.12 with PyTorch
# and Triton, and beside them numpy, transformers, tokenizers, safetensors, click, tqdm, rich, pyyaml, einops, packaging,
# setuptools, pytest, pytest-timeout, pytest-xdist and hypothesis (an image for deep learning has them):
#   tools/gpu_wheels.sh FOLDER
# Then, in a checkout there:
#   python3 -m pip install --no-index --no-deps FOLDER/*.whl
#   python3 -m pip install --no-index --no-deps --no-build-isolation --editable .
#   python3 tools/gpu_check.py --minutes 8 --output FOLDER_OF_RESULTS
# Nothing asks for what a package needs (--no-deps), so that PyTorch and Triton stay the ones of the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: tools/gpu_wheels.sh FOLDER}
PYTHON=${PYTHON:-python3}
mkdir -p "$folder"
versions() { # NAME==VERSION of each name, as constraints.txt has it
  for name in "$@"; do grep -im1 "^$name==" constraints.txt || { echo "$name is not in constraints.txt" >&2; exit 1; }; done
}
wheels=$(versions megatron-core hydra-core omegaconf pydantic pydantic_core annotated-types typing-inspection gigatoken \
  awkward awkward_cpp plotly)
sources=$(versions antlr4-python3-runtime) # published as source alone, and pure Python
platforms=()
for n in 39 34 31 28 27 26 24 17; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
# shellcheck disable=SC2086 # one argument for every package
"$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  "${platforms[@]}" --dest "$folder" $wheels
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$folder" $sources
ls -l "$folder"
