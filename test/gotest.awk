# Reads the output of go test -json, prints a line for every test and package that
# failed and for every figure that was measured, and writes the counts of passed, failed
# and skipped tests to the file COUNTS. A test with subtests counts through them.
function field(name,   s) {
    if (!match($0, "\"" name "\":\"[^\"]*\"")) return ""
    s = substr($0, RSTART, RLENGTH)
    sub("^\"" name "\":\"", "", s)
    sub("\"$", "", s)
    return s
}
!/^\{"/ { next }
{ action = field("Action") }
action == "output" {
    if (match($0, /FIGURE .*"}$/)) {
        line = substr($0, RSTART + 7, RLENGTH - 9)
        sub(/\\n$/, "", line)
        gsub(/\\"/, "\"", line)
        printf "     %s: %s\n", field("Test"), line
    }
    next
}
action == "build-fail" { builds++; print "FAIL " field("ImportPath") ": does not build"; next }
action != "pass" && action != "fail" && action != "skip" { next }
{
    pkg = field("Package"); test = field("Test")
    if (test == "") {
        if (action == "fail") failedPackage[pkg] = 1
        next
    }
    result[pkg, test] = action
    name[pkg, test] = pkg " " test
    owner[pkg, test] = pkg
    while (match(test, /\/[^\/]*$/)) {
        test = substr(test, 1, RSTART - 1)
        parent[pkg, test] = 1
        if (action == "fail") childFailed[pkg, test] = 1
    }
}
END {
    for (k in result) {
        if (result[k] == "fail") explained[owner[k]] = 1
        if ((k in parent) && (result[k] != "fail" || (k in childFailed))) continue
        n[result[k]]++
        if (result[k] == "fail") print "FAIL " name[k]
    }
    # A package can fail outside of its tests: a panic, a time limit, a build.
    for (p in failedPackage) if (!(p in explained)) { n["fail"]++; print "FAIL " p " (package)" }
    printf "%d %d %d\n", n["pass"], n["fail"], n["skip"] >COUNTS
}
