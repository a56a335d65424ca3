#!/usr/bin/env bash
# Install onnxcalib, from the folder that this script came with, into a virtual environment of its own.
#
# ONNXCALIB_HOME   the folder of that environment, and of pip's cache, which pipelines keep from run to run
# QUANTIZE         anything: all packages. Empty: those that validate needs, without torch
# TORCH_INDEX      beside QUANTIZE, pip's index of CPU builds of torch; pip's own builds may bring CUDA along
# PYTHON           the interpreter, 3.11 or later
set -euo pipefail
source_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
: "${ONNXCALIB_HOME:?the folder to install into}"
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$ONNXCALIB_HOME/pip}
export PIP_DISABLE_PIP_VERSION_CHECK=1

rm -rf "$source_folder/build/lib" # else setuptools installs what an earlier version has left there
"${PYTHON:-python3}" -m venv "$ONNXCALIB_HOME/venv"
# Most of what is installed never runs here: what does is compiled when it is first imported.
pip=("$ONNXCALIB_HOME/venv/bin/python" -m pip install --quiet --no-compile --constraint "$source_folder/constraints.txt")
if [[ -n ${QUANTIZE:-} ]]; then
  "${pip[@]}" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
  "${pip[@]}" "$source_folder"
  if compgen -G "$ONNXCALIB_HOME/venv/lib/python3*/site-packages/nvidia" >/dev/null; then
    echo "pip brought CUDA packages along, gigabytes of them; TORCH_INDEX can name an index of CPU builds of torch" >&2
  fi
else
  "${pip[@]}" --requirement "$source_folder/requirements-validate.txt"
  "${pip[@]}" --no-deps "$source_folder"
fi
"$ONNXCALIB_HOME/venv/bin/onnxcalib" --version
