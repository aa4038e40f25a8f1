#!/bin/sh
# Usage: real-input.sh REMOTE FOLDER
#
# Puts 2 GB of real files through a limit of 200 MB, and looks whether all of it comes back, here and
# in a clone, as on a second computer. REMOTE is a new folder on a server, such as
# someserver:~/syncer-try, or a local path; FOLDER is a new folder that takes 3 GB (and REMOTE
# takes 2 GB). Both are left for you to look at, and to remove.
#
# PHOTOS_MB (1500) is how much of it are photo-like files, MAX_MB (200) the limit, and LIBRARIES
# the folders of small files: Python's standard library and the packages installed for it.
set -eu

remote=$1
folder=$2
limit=${MAX_MB:-200}
photos=${PHOTOS_MB:-1500}
libraries=${LIBRARIES:-$(
    python3 -c 'import sysconfig as s; print(s.get_path("stdlib"), s.get_path("purelib"))'
)}

mkdir -p "$folder/source" "$folder/mnt"
cd "$folder"

umount_if_mounted() {
    ! mountpoint -q mnt || syncer umount mnt
}

say() {
    echo "== $*"
}

# Notes how much local data there is, ten times a second, until it is ended.
watch_limit() {
    while sleep 0.1; do
        du -sk data/blocks data2/blocks 2>/dev/null || true
    done >local-kilobytes
}
watch_limit &
watcher=$!
trap 'umount_if_mounted; kill "$watcher" 2>/dev/null || true' EXIT

say "making the source"
for library in $libraries; do
    [ ! -d "$library" ] || cp -a "$library" source/
done
made=0
number=0
while [ "$made" -lt "$photos" ]; do
    # 2 to 8 MB, that can't be compressed.
    size=$((2 + number * 5 % 7))
    head -c "${size}000000" /dev/urandom >"source/IMG_$number.jpg"
    made=$((made + size))
    number=$((number + 1))
done
du -sh source

say "mounting with a limit of $limit MB, and copying"
syncer mount data "$remote" mnt "$limit"
cp -a source/. mnt/
syncer status mnt

say "waiting until everything is on the server"
syncer flush mnt
syncer umount mnt

say "mounting again, and comparing"
syncer mount data mnt
diff -r --no-dereference source mnt
syncer status mnt
syncer umount mnt

say "the same through a clone"
syncer clone data2 "$remote" "$limit"
syncer mount data2 mnt
diff -r --no-dereference source mnt
syncer umount mnt

kill "$watcher"
most=$(sort -n local-kilobytes | tail -n 1 | cut -f 1)
say "no difference; at most $((most * 1024 / 1000000)) MB were kept locally"
[ $((most * 1024)) -le $(((limit + 16) * 1000000)) ]
