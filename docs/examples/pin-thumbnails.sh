#!/bin/sh
# Usage: pin-thumbnails.sh MOUNTPOINT [NAME...]
#
# Pins every folder of small pictures in the mount, so that a collection of photos can be browsed at
# once, and without the server. These are the folders called .thumbnails, .thumbs or @eaDir, or as
# NAME says. What comes into them later is kept as well; for folders that are made later, run it
# again. Pins are this computer's own: run it on each.
#
# Exit status: 0 all of them are local; else some are not, and it says why above the list of pins.
set -eu

top=$1
shift
[ $# -gt 0 ] || set -- .thumbnails .thumbs @eaDir

# The names become "-o -name NAME" for find, without the first -o.
for name; do
    shift
    set -- "$@" -o -name "$name"
done
shift

status=0
find "$top" -type d \( "$@" \) -prune -exec syncer pin {} + || status=$?
syncer pins "$top"
exit "$status"
