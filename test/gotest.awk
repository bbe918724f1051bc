# Reads the output of go test -json. Prints every test and package that failed, with the
# end of what it said, and every figure that was measured; writes the counts of passed,
# failed and skipped tests to the file COUNTS and the whole output as plain text to LOG.
# A test with subtests counts through them.
function field(name,   s) {
    if (!match($0, "\"" name "\":\"[^\"]*\"")) return ""
    s = substr($0, RSTART, RLENGTH)
    sub("^\"" name "\":\"", "", s)
    sub("\"$", "", s)
    return s
}
function plain(s) {
    gsub(/\\\\/, "\001", s)
    gsub(/\\t/, "    ", s)
    gsub(/\\"/, "\"", s)
    gsub(/\\u003c/, "<", s)
    gsub(/\\u003e/, ">", s)
    gsub(/\\u0026/, "\\&", s)
    gsub(/\\n/, "\n", s)
    gsub(/\001/, "\\", s)
    return s
}
!/^\{"/ { print >LOG; next }
{ action = field("Action"); pkg = field("Package"); test = field("Test") }
action == "output" || action == "build-output" {
    if (!match($0, /"Output":".*"}$/)) next
    text = plain(substr($0, RSTART + 10, RLENGTH - 12))
    printf "%s", text >LOG
    if (match(text, /FIGURE .*/)) {
        text = substr(text, RSTART + 7)
        sub(/\n$/, "", text)
        print "     " test ": " text
    } else if (text !~ /^(===|---) / && text !~ /^(FAIL|PASS|ok|exit status)/) {
        key = action == "output" ? pkg SUBSEP test : field("ImportPath")
        said[key, lines[key]++] = text
    }
    next
}
action == "build-fail" { show("does not build", field("ImportPath"), field("ImportPath")); next }
action == "run" { begun[pkg, test] = 1; label[pkg, test] = pkg " " test; owner[pkg, test] = pkg; next }
action != "pass" && action != "fail" && action != "skip" { next }
test == "" { if (action == "fail") failedPackage[pkg] = 1; next }
{
    result[pkg, test] = action
    order[++tests] = pkg SUBSEP test
    while (match(test, /\/[^\/]*$/)) {
        test = substr(test, 1, RSTART - 1)
        parent[pkg, test] = 1
        if (action == "fail") childFailed[pkg, test] = 1
    }
}
function show(why, what, key,   i, n) {
    print "FAIL " what (why == "" ? "" : ": " why)
    n = lines[key] + 0
    for (i = n > 12 ? n - 12 : 0; i < n; i++) printf "     %s", said[key, i] (said[key, i] ~ /\n$/ ? "" : "\n")
}
END {
    for (i = 1; i <= tests; i++) {
        k = order[i]
        if (result[k] == "fail") explained[owner[k]] = 1
        if ((k in parent) && (result[k] != "fail" || (k in childFailed))) continue
        n[result[k]]++
        if (result[k] == "fail") show("", label[k], k)
    }
    # What began and did not end: a panic, or the time limit.
    for (k in begun) if (!(k in result) && !(k in parent)) {
        n["fail"]++
        explained[owner[k]] = 1
        show("did not end", label[k], k)
    }
    # A package can fail outside of its tests: a panic, a time limit, a build.
    for (p in failedPackage) if (!(p in explained)) { n["fail"]++; show("the package", p, p SUBSEP "") }
    printf "%d %d %d\n", n["pass"], n["fail"], n["skip"] >COUNTS
}
