#!/bin/sh
# Usage: warn-when-not-safe.sh TARGET [SECONDS]
#
# Warns if something has been waiting for its way to the server for more than SECONDS (900): with a
# notification on a desktop, else on stderr. Made for cron or a timer, for instance each ten
# minutes:
#
#     */10 * * * * warn-when-not-safe.sh ~/Pictures
#
# Exit status: 0 all is well, 1 something waits, else what `syncer status` ended with.
set -eu

target=$1
limit=${2:-900}

# `safe` and `oldest_dirty_seconds` are keys that stay; see docs/commands.md.
state=$(syncer status "$target" --json)
waiting=$(printf '%s\n' "$state" | sed -n 's/^ *"oldest_dirty_seconds": \([0-9]*\).*/\1/p')
if printf '%s\n' "$state" | grep -q '^ *"safe": true' || [ "$waiting" -lt "$limit" ]; then
    exit 0
fi

message=$(syncer status "$target" | head -n 1)
if [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] && command -v notify-send >/dev/null; then
    notify-send --urgency=critical "syncer: $target" "$message"
else
    echo "syncer: $target: $message" >&2
fi
exit 1
