#!/bin/bash
# suite.sh SECONDS [BINARY NAME]...: runs tests, each in a process of its own and at most so long, and says how each
# ended; what a test has said only if it failed. Exit status 1 if any failed.

limit=$1
shift

passed=0 failed=()
while (($#)); do
    binary=$1 name=$2
    shift 2
    test=$(basename "${binary%-*}")::$name
    begun=${EPOCHREALTIME/./}
    timeout --kill-after=5 "$limit" "$binary" --exact "$name" --nocapture &>/run/test.log </dev/null
    status=$?
    took=$(((${EPOCHREALTIME/./} - begun) / 100000))
    case $status in
    0) how=ok passed=$((passed + 1)) ;;
    124 | 137) how="NOT OVER" failed+=("$test") ;;
    *) how=FAILED failed+=("$test") ;;
    esac
    printf '%8s  %4d.%d s  %s\n' "$how" $((took / 10)) $((took % 10)) "$test"
    [[ $how == ok ]] || sed 's/^/          /' /run/test.log
done

echo "$passed passed, ${#failed[@]} failed"
((${#failed[@]} == 0)) || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
