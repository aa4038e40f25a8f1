#!/bin/sh
# Usage: wait-before-suspend.sh TARGET [COMMAND...]
#
# Uploads everything, then suspends the computer, or runs COMMAND in place of that. TARGET is a
# mount point or a data directory.
#
# Nothing is lost without it: what is not uploaded is safe on the local disk, and goes on after the
# computer wakes up. This is for whoever wants to have it on the server before the lid closes. Where
# that takes longer than SECONDS_TO_WAIT (300), or the server is away, nothing is suspended and the
# exit status is that of `syncer flush`: 4.
set -eu

target=$1
shift
[ $# -gt 0 ] || set -- systemctl suspend

if syncer flush "$target" --timeout "${SECONDS_TO_WAIT:-300}"; then
    exec "$@"
else
    status=$?
    # The first line says what is missing.
    syncer status "$target" >&2
    exit "$status"
fi
