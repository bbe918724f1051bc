#!/bin/bash
# Runs every fuzz target for a time each: fuzz.sh 60s [PATTERN]
set -u
cd "$(dirname "$0")/.."
t=${1:-60s} pat=${2:-.} bad=0
while read -r pkg name; do
    printf '%-60s ' "$pkg $name"
    if out=$(go test -run '^$' -fuzz "^$name\$" -fuzztime "$t" "$pkg" 2>&1); then echo "ok"
    else echo "FOUND"; echo "$out" | tail -n 30; bad=1; fi
done < <(grep -rlE --include='*_test.go' '^func Fuzz' . | while read -r f; do
    grep -oE '^func Fuzz[A-Za-z0-9_]*' "$f" | sed "s|^func |$(dirname "$f") |"; done | grep -E "$pat" | sort -u)
exit $bad
