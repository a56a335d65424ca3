#!/usr/bin/env bash
# Name the state of pip's cache: another one for each interpreter, set of packages, and bounds of their versions.
set -euo pipefail
source_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$("${PYTHON:-python3}" -c 'import sys, sysconfig; print(sys.version_info[:2], sysconfig.get_platform())')
files=("$source_folder"/{constraints.txt,requirements-validate.txt,setup.cfg})
echo "key=onnxcalib-$({ echo "$python ${QUANTIZE:+all}"; cat "${files[@]}"; } | sha256sum | cut -c1-20)" >>"$GITHUB_OUTPUT"
