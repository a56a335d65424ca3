#!/usr/bin/env bash
# Run onnxcalib validate with the given arguments, from an environment in this repository, installed once a commit of it.
set -euo pipefail
source_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# git tells its hooks of the repository that they run for; here it is asked for this one.
commit=$(env --unset=GIT_DIR --unset=GIT_WORK_TREE --unset=GIT_INDEX_FILE git -C "$source_folder" rev-parse HEAD)
export ONNXCALIB_HOME=$source_folder/.hook
if [[ $(cat "$ONNXCALIB_HOME/commit" 2>/dev/null) != "$commit" ]]; then
  bash "$source_folder/step/install.sh" >&2
  echo "$commit" >"$ONNXCALIB_HOME/commit"
fi
exec "$ONNXCALIB_HOME/venv/bin/onnxcalib" validate "$@"
