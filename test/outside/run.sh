#!/bin/bash
# The outside tests in their longer forms.
#   run.sh all     everything: make judge
#   run.sh soak    kill -9 under load, again and again, for SOAK_SECONDS (3600), at least 50 rounds: make soak
# More arguments go to go test, for example -run TestGuest. BLOCKGATE_BIN names a binary to
# test instead of one built here. The last line is "N passed, N failed[, N skipped]".
set -u
cd "$(dirname "$(readlink -f "$0")")/../.." || exit 1
set_=${1:-}
case $set_ in
all) limit=3600 pick=() groups="test judge" also=./internal/daemon ;;
soak)
    export BLOCKGATE_SOAK_SECONDS=${SOAK_SECONDS:-3600}
    limit=$((BLOCKGATE_SOAK_SECONDS + 600)) pick=(-run '^TestCrash$') groups=test
    ;;
*) sed -n 2,7p "$0" >&2; exit 2 ;;
esac
shift
# shellcheck disable=SC2086
test/packages.sh $groups || exit 1
logs=$(mktemp -d "${TMPDIR:-/tmp}/blockgate-test.XXXXXX")
BLOCKGATE_OUTSIDE=$set_ timeout -k 10 $limit go test -json -count=1 -timeout "$((limit - 60))s" "${pick[@]}" ./test/outside ${also-} "$@" \
    </dev/null >"$logs/outside.json" 2>&1
status=$?
awk -v COUNTS="$logs/counts" -v LOG="$logs/outside.log" -f test/gotest.awk "$logs/outside.json"
read -r passed failed skipped <"$logs/counts"
[ $status = 0 ] || [ "$failed" != 0 ] || { failed=1; tail -n 5 "$logs/outside.json"; }
if [ "$failed" = 0 ]; then rm -rf "$logs"; else echo "logs: $logs"; fi
echo "$passed passed, $failed failed$([ "$skipped" = 0 ] || echo ", $skipped skipped")"
[ "$failed" = 0 ]
