#!/bin/sh
# The work of action.yml and gitlab.yml: deploy, say what serves, and end with the exit code of `deployer deploy`.
# Reads INPUT_SOURCE, INPUT_REF, INPUT_CONFIG, INPUT_OPTIONS, INPUT_SSH and INPUT_ALLOW_WARNINGS, all of which may be empty.
set -u

# Quoted for a second shell, which is what ssh hands its words to.
quoted() {
    printf "'%s' " "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

deployer() {
    if [ -z "${INPUT_SSH:-}" ]; then
        command deployer "$@"
        return
    fi
    words=
    # What tells deployer that it runs in a build: its annotations then come over ssh as they are.
    for name in GITHUB_ACTIONS GITHUB_ACTOR GITHUB_RUN_ID GITLAB_CI CI; do
        eval "value=\${$name:-}"
        [ -z "$value" ] || words="$words$(quoted "$name=$value")"
    done
    words="env ${words}deployer "
    for word in "$@"; do
        words="$words$(quoted "$word")"
    done
    ssh -o BatchMode=yes -- "$INPUT_SSH" "$words" </dev/null
}

if [ -n "${INPUT_CONFIG:-}" ] && [ -z "${INPUT_SSH:-}" ]; then
    export DEPLOYER_CONFIG="$INPUT_CONFIG"
fi

set --
[ -z "${INPUT_SSH:-}" ] || [ -z "${INPUT_CONFIG:-}" ] || set -- --config "$INPUT_CONFIG"
# shellcheck disable=SC2086 # several words are meant
deployer deploy "$@" ${INPUT_OPTIONS:-} ${INPUT_REF:+--ref "$INPUT_REF"} ${INPUT_SOURCE:+"$INPUT_SOURCE"}
code=$?
serving=$(deployer status --quiet "$@" 2>/dev/null) || serving=
if [ -n "${GITHUB_OUTPUT:-}" ]; then
    printf 'exit-code=%s\nserving=%s\n' "$code" "$serving" >>"$GITHUB_OUTPUT"
fi
echo "deployer deploy ended with $code; ${serving:-nothing} serves"
if [ "$code" = 9 ] && [ "${INPUT_ALLOW_WARNINGS:-true}" = true ]; then
    exit 0
fi
exit "$code"
