# Steps of a test run: sourced by test and test-long. Durations are printed as the run goes; `finish` prints the table
# and, as last line, "N passed, N failed, N skipped" over all steps and tests.
# shellcheck shell=bash

log=$(mktemp)
trap 'rm -rf "$log"' EXIT
passed=0 failed=0 skipped=0 times='' reasons=''

# count: adds up what the tests in $log said
count() {
    local ok bad ignored aloud
    ok=$(sum passed) bad=$(sum failed) ignored=$(sum ignored)
    # A test that finds it cannot run says so and counts as passed with libtest.
    aloud=$(grep -c '^skipped: ' "$log")
    passed=$((passed + ok))
    failed=$((failed + bad))
    skipped=$((skipped + ignored + aloud))
    [ "$ok" -lt "$aloud" ] || passed=$((passed - (ok > 0 ? aloud : 0)))
    tests_failed=$bad
}

# sum WORD: of the numbers before that word in libtest's closing lines
sum() {
    local numbers
    numbers=$(sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$log" | paste -sd+)
    echo "$((${numbers:-0}))"
}

# step NAME COMMAND…: one step, timed. It counts as one test of its own.
step() {
    local name=$1 started=$SECONDS code took
    shift
    echo
    echo "==== $name"
    "$@" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    took=$((SECONDS - started))
    times+=$(printf '%5d s  %s' "$took" "$name")$'\n'
    tests_failed=0
    count
    if [ "$code" -eq 0 ]; then
        passed=$((passed + 1))
        echo "test step::$name ... ok ($took s)"
    else
        # Failed tests inside are counted already.
        [ "$tests_failed" -gt 0 ] || failed=$((failed + 1))
        echo "test step::$name ... FAILED ($took s)"
        reasons+="---- $name"$'\n'"$(why)"$'\n'
    fi
    return "$code"
}

# why: what the step in $log failed of: what libtest says of failed tests (a test that passes may panic, too), errors,
# else its last lines
why() {
    awk '/^failures:$/ { inside = 1 } /^test result: / { inside = 0 } inside' "$log" | head -n 150 | grep . ||
        grep -A 12 -e '^error' -e '^E: ' "$log" | head -n 60 | grep . || tail -n 20 "$log"
}

# leave_out NAME WHY: a step that cannot run here
leave_out() {
    echo "skipped: $1: $2"
    skipped=$((skipped + 1))
}

finish() {
    # Once more at the end, where whoever looks at a failed run looks first.
    [ -z "$reasons" ] || printf '\n==== reasons\n%s' "$reasons"
    echo
    echo "==== durations"
    printf '%s' "$times"
    printf '%5d s  in all\n\n' "$SECONDS"
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    [ "$failed" -eq 0 ]
    exit
}
