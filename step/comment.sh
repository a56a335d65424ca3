#!/usr/bin/env bash
# Write the report into the pull request's comment: its own one of an earlier run, where there is one, else a new one.
#
# REPORTS             the folder with report.md
# PULL_REQUEST        its number
# TITLE               tells comments of several steps of one pull request apart
# GITHUB_REPOSITORY, GH_TOKEN   as the runner gives them; without the right to write, a warning is all that happens
set -euo pipefail
: "${REPORTS:?}" "${PULL_REQUEST:?}" "${GITHUB_REPOSITORY:?}"
most=60000 # characters; GitHub takes 65,536
title=${TITLE:-}
mark="<!-- onnxcalib validate: ${title//[^A-Za-z0-9 ._]/_} -->"
if [[ ! -f $REPORTS/report.md ]]; then
  echo "nothing was judged, so there is no report to write into the pull request"
  exit 0
fi
body=$(mktemp)
trap 'rm -f "$body"' EXIT
{
  echo "$mark"
  head -c "$most" "$REPORTS/report.md"
} >"$body"
if (($(wc -c <"$REPORTS/report.md") > most)); then
  # A last line that is cut, or a character of several bytes, goes with it.
  sed -i '$d' "$body"
  printf '\n\nThe whole report is among the files of the run.\n' >>"$body"
fi

comments=repos/$GITHUB_REPOSITORY/issues/$PULL_REQUEST/comments
write() {
  local earlier
  earlier=$(gh api --paginate "$comments" --jq ".[] | select(.body | startswith(\"$mark\")) | .id") || return
  earlier=${earlier%%$'\n'*}
  if [[ -n $earlier ]]; then
    gh api --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$earlier" --field body=@"$body" --silent
  else
    gh api --method POST "$comments" --field body=@"$body" --silent
  fi
}
if ! write; then
  echo "::warning title=onnxcalib::the report could not be written into the pull request; the job needs" \
    "'permissions: pull-requests: write', which runs for forks do not have"
fi
