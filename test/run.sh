#!/bin/bash
# All tests: packages, static checks, unit tests with the race detector, and the binary
# against outside tools and a Linux guest. Needs root, Go and Debian's package sources.
#   run.sh [STAGE...]     of packages, check, unit, outside; default: all of them
# One line a stage, what failed, and what was measured; the details are in files named at
# the end if something failed. The last line is "N passed, N failed[, N skipped]".
# Env: UNIT (packages for the unit stage, default all).
set -u
cd "$(dirname "$(readlink -f "$0")")/.." || exit 1
exec </dev/null
[ $# -gt 0 ] || set -- packages check unit outside
logs=$(mktemp -d "${TMPDIR:-/tmp}/blockgate-test.XXXXXX")
passed=0 failed=0 skipped=0 child=
trap 'trap - INT TERM; [ -n "$child" ] && kill -TERM "$child" 2>/dev/null; wait; echo "interrupted; logs: $logs"; exit 130' INT TERM

# limited SECONDS LOG COMMAND...: its output goes to the log; at the limit it is killed
# with all of its children. In the background, so that a signal to us is seen at once.
limited() {
    local limit=$1 log=$2 status
    shift 2
    timeout -k 10 "$limit" "$@" >"$log" 2>&1 &
    child=$!
    wait $child
    status=$?
    child=
    [ $status != 124 ] || echo "stopped at the limit of $limit s" >>"$log"
    return $status
}
# stage NAME SECONDS COMMAND...: counts as one.
stage() {
    local name=$1 limit=$2 t=$SECONDS
    shift 2
    if limited "$limit" "$logs/$name.log" "$@"; then
        passed=$((passed + 1))
        echo "ok   $name ($((SECONDS - t)) s)"
        grep -h 'skipped: ' "$logs/$name.log" | sed 's/^/     /' | cut -c1-160
    else
        failed=$((failed + 1))
        echo "FAIL $name ($((SECONDS - t)) s)"
        tail -n 30 "$logs/$name.log" | sed 's/^/     /'
    fi
}
# tests NAME SECONDS COMMAND...: go test -json; every test counts.
tests() {
    local name=$1 limit=$2 t=$SECONDS p f s status
    shift 2
    limited "$limit" "$logs/$name.json" "$@"
    status=$?
    awk -v COUNTS="$logs/$name.counts" -v LOG="$logs/$name.log" -f test/gotest.awk "$logs/$name.json" >"$logs/$name.summary"
    read -r p f s <"$logs/$name.counts"
    [ $status = 0 ] || [ "$f" != 0 ] || { f=1; echo "FAIL $name: $(grep -v '^{' "$logs/$name.json" | tail -n 3)" >>"$logs/$name.summary"; }
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    if [ "$f" = 0 ]; then echo -n "ok  "; else echo -n "FAIL"; fi
    echo " $name: $p passed, $f failed, $s skipped ($((SECONDS - t)) s)"
    cat "$logs/$name.summary"
}
unit_packages() {
    # The outside tests have a stage of their own.
    # shellcheck disable=SC2086
    go list ${UNIT:-./...} | grep -v '/test/outside$'
}

for s in "$@"; do
    case $s in
    packages) stage packages 1200 test/packages.sh test ;;
    check) stage check 900 test/check.sh ;;
    unit)
        list=$(unit_packages)
        # The race detector needs cgo; the binary never does.
        # shellcheck disable=SC2086
        CGO_ENABLED=1 tests unit 1200 go test -json -race -timeout 15m ${list:-./...}
        ;;
    outside) BLOCKGATE_OUTSIDE=1 tests outside 900 go test -json -count=1 -timeout 14m ./test/outside ;;
    *) echo "run.sh: no stage '$s' (packages, check, unit, outside)" >&2; exit 2 ;;
    esac
done

if [ $failed = 0 ]; then rm -rf "$logs"; else echo "logs: $logs"; fi
echo "$passed passed, $failed failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
[ $failed = 0 ]
