#!/usr/bin/env bash
# Quantize, where samples to calibrate with are given, and validate; the exit status is that of the first that fails.
#
# FLOAT_MODEL, QUANTIZED_MODEL, DATA   what is compared, and on which samples
# LABELS, CONFIG                       their classes, and a TOML file of settings and gates; both may be empty
# CALIBRATION                          samples to quantize FLOAT_MODEL with; empty where QUANTIZED_MODEL is there already
# REPORTS                              the folder for report.md, report.xml (JUnit), report.html, report.json and
#                                      quantize.html
# ONNXCALIB_HOME                       where install.sh has installed it
set -euo pipefail
: "${REPORTS:?}" "${ONNXCALIB_HOME:?}"
onnxcalib=$ONNXCALIB_HOME/venv/bin/onnxcalib
config=(${CONFIG:+--config "$CONFIG"})
mkdir -p -- "$REPORTS"
rm -f -- "$REPORTS"/{report.{md,xml,html,json},quantize.html}

publish() { # the status of the last command, and what it wrote
  local status=$?
  if [[ -n ${GITHUB_OUTPUT:-} ]]; then
    echo "status=$status" >>"$GITHUB_OUTPUT"
  fi
  if [[ -n ${GITHUB_STEP_SUMMARY:-} && -f $REPORTS/report.md ]]; then
    cat "$REPORTS/report.md" >>"$GITHUB_STEP_SUMMARY"
  fi
  exit "$status"
}
trap publish EXIT

# GitHub does not see to it that inputs are given that have to be.
for each in float=FLOAT_MODEL quantized=QUANTIZED_MODEL data=DATA; do
  name=${each#*=}
  if [[ -z ${!name:-} ]]; then
    echo "error: found no ${each%=*}; it is needed as an input of the step, or as $name where this script runs by itself" >&2
    exit 2
  fi
done
if [[ -n ${CALIBRATION:-} ]]; then
  "$onnxcalib" quantize --calib "$CALIBRATION" -o "$QUANTIZED_MODEL" --html "$REPORTS/quantize.html" "${config[@]}" -- "$FLOAT_MODEL"
fi
"$onnxcalib" validate --data "$DATA" ${LABELS:+--labels "$LABELS"} "${config[@]}" \
  --junit "$REPORTS/report.xml" --markdown "$REPORTS/report.md" --html "$REPORTS/report.html" \
  --json "$REPORTS/report.json" -- "$FLOAT_MODEL" "$QUANTIZED_MODEL"
