#!/usr/bin/env bash
# Write the report into the pull request's comment: the one that this step wrote in an earlier run, else a new one.
#
# REPORTS             the folder with report.md
# STATUS              the exit status of run.sh; empty where it did not run, and the folder has an earlier step's report
# PULL_REQUEST        its number
# TITLE               tells comments of several steps of one pull request apart
# GITHUB_REPOSITORY, GH_TOKEN   as the runner gives them; without the right to write, a warning is all that happens
set -euo pipefail
: "${REPORTS:?}" "${PULL_REQUEST:?}" "${GITHUB_REPOSITORY:?}"
most=60000 # bytes; GitHub takes 65,536 characters
title=${TITLE:-}
mark="<!-- onnxcalib validate: ${title//[^A-Za-z0-9 ._]/_} -->"
report=$REPORTS/report.md
body=$(mktemp)
trap 'rm -f "$body"' EXIT
judged=yes
echo "$mark" >"$body"
if [[ -z ${STATUS:-} || ! -f $report ]]; then
  judged=
  echo "nothing was judged, so there is no report to write into the pull request; a comment of an earlier run says so"
  printf '## onnxcalib validate: nothing was judged\n\nThe log of the run says why.\n' >>"$body"
elif (($(wc -c <"$report") > most)); then
  # Ahead of it, as the cut may leave a fold or a block of code open. A last line in part goes.
  printf 'This is the start of the report, which is among the files of the run.\n\n' >>"$body"
  head -c "$most" "$report" | sed '$d' >>"$body"
else
  cat "$report" >>"$body"
fi

comments=repos/$GITHUB_REPOSITORY/issues/$PULL_REQUEST/comments
write() {
  local earlier login own='.user.type == "Bot"' # the token of a job cannot ask who it is
  if login=$(gh api user --jq .login 2>/dev/null) && [[ -n $login ]]; then
    own=".user.login == \"$login\""
  fi
  # Not what somebody else has written, however it begins.
  earlier=$(gh api --paginate "$comments" --jq ".[] | select($own and (.body | startswith(\"$mark\"))) | .id") || return
  earlier=${earlier%%$'\n'*}
  if [[ -n $earlier ]]; then
    gh api --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$earlier" --field body=@"$body" --silent
  elif [[ -n $judged ]]; then
    gh api --method POST "$comments" --field body=@"$body" --silent
  fi
}
if ! write; then
  echo "::warning title=onnxcalib::the report could not be written into the pull request; the job needs" \
    "'permissions: pull-requests: write', which runs for forks do not have"
fi
