#!/bin/bash
# suite.sh SECONDS FILTER [-BEGINNING...] BINARY...: runs the tests of some test binaries whose name contains FILTER,
# each in a process of its own and at most so long, and says how each ended; what a test has said only if it failed.
# Tests whose name begins with one of the BEGINNINGs are left out. Exit status 1 if any failed, or if there was none.

limit=$1 filter=$2
shift 2
left_out=()
while [[ $1 == -* ]]; do
    left_out+=("${1#-}")
    shift
done

is_left_out() {
    local beginning
    for beginning in "${left_out[@]}"; do
        [[ $1 != "$beginning"* ]] || return 0
    done
    return 1
}

passed=0 failed=()
for binary; do
    folder=$(basename "${binary%-*}")
    while read -r name; do
        is_left_out "$folder::$name" && continue
        begun=${EPOCHREALTIME/./}
        timeout --kill-after=5 "$limit" "$binary" --exact "$name" --nocapture &>/run/test.log </dev/null
        status=$?
        took=$(((${EPOCHREALTIME/./} - begun) / 100000))
        case $status in
        0) how=ok passed=$((passed + 1)) ;;
        124 | 137) how="NOT OVER" failed+=("$folder::$name") ;;
        *) how=FAILED failed+=("$folder::$name") ;;
        esac
        printf '%8s  %4d.%d s  %s\n' "$how" $((took / 10)) $((took % 10)) "$folder::$name"
        [[ $how == ok ]] || sed 's/^/          /' /run/test.log
    done < <("$binary" --list --format=terse "$filter" | sed -n 's/: test$//p')
done

echo "$passed passed, ${#failed[@]} failed"
((${#failed[@]} == 0)) || printf 'failed: %s\n' "${failed[@]}"
((passed > 0 && ${#failed[@]} == 0))
