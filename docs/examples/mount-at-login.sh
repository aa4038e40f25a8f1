#!/bin/sh
# Usage: mount-at-login.sh DATA MOUNTPOINT [REMOTE [MAX_MB]]
#
# Mounts unless it is mounted already, so it may be started any number of times: from ~/.profile,
# from a desktop's list of startup programs, or from cron (@reboot). On a desktop or with systemd,
# `syncer autostart add DATA MOUNTPOINT` does the same without a script.
#
# The server need not be reachable, but for the first mount; that one needs REMOTE.
set -eu

data=$1
mountpoint=$2
shift 2

if mountpoint -q "$mountpoint"; then
    exit 0
fi
# After a crash the folder is there but can't be looked at; mounting clears that.
mkdir -p "$mountpoint" 2>/dev/null || true
exec syncer mount "$data" ${1:+"$1"} "$mountpoint" ${2:+"$2"}
