#!/bin/bash
# Formatting, vet, static analysis and known vulnerabilities. The tools come as Go
# modules at fixed versions; govulncheck needs its database from the network and is
# skipped, with a line, where that is out of reach.
set -u
cd "$(dirname "$0")/.."
bad=0
out=$(gofmt -l $(git ls-files '*.go')) && [ -z "$out" ] || { echo "not gofmt-ed:"; echo "$out"; bad=1; }
go vet ./... || bad=1
# SA, S and U checks; ST1000 and such are matters of taste.
go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 -checks 'all,-ST*' ./... || bad=1
if o=$(timeout 120 go run golang.org/x/vuln/cmd/govulncheck@v1.4.0 ./... 2>&1); then echo "govulncheck: nothing known"
elif grep -q '^Vulnerability #' <<<"$o"; then echo "$o"; bad=1
else echo "govulncheck: skipped: $(tail -n 1 <<<"$o")"; fi
exit $bad
