#!/usr/bin/env bash
# Kills one of four chunk servers that holds about 2 GiB, and tells how long it takes until every chunk has three copies again.
#   bench/rereplicate.sh [-b FOLDER_OF_PROGRAMS]       default target/release
# Beside it one writer of 1 MiB and fsync, and one reader of cold 1 MiB pieces: their rates before and meanwhile are the foreground's.
# The disk is measured in the same run: what it takes of one stream past the page cache, alone, and beside another that reads as much.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=$PWD/target/release
while getopts b: option; do
    case $option in b) programs=$OPTARG ;; *) exit 2 ;; esac
done
gfs=$programs/gfs
work=$(mktemp -d /var/tmp/gfs-rereplicate.XXXXXX)
load=
stop() {
    [ -z "$load" ] || { kill "$load" && wait "$load" || true; } 2>/dev/null
    "$gfs" down --dir "$work/gfs" --wipe >/dev/null || true
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 143' TERM INT

mkdir "$work/mnt"
now() { date +%s.%N; }
"$gfs" up --dir "$work/gfs" --mount "$work/mnt" --chunkservers 4 --base-port 17600 >/dev/null
export GFS_CLUSTER=127.0.0.1:17600
rate() { python3 -c "print(2048 * 1.048576 / ($(now) - $1))"; }
put() { dd if=/dev/zero of="$1" bs=1M count=2048 oflag=direct conv=fsync status=none; }
begun=$(now)
put "$work/disk"
disk=$(rate "$begun")
begun=$(now)
dd if="$work/disk" of=/dev/null bs=1M iflag=direct status=none &
put "$work/disk2"
wait $!
copied=$(rate "$begun")
rm "$work/disk" "$work/disk2"
# Two thirds more than 2 GiB in files of one chunk: three copies of it on four servers are 2 GiB on each.
for file in $(seq 43); do
    head -c 64M /dev/urandom >"$work/mnt/$file"
done
sync "$work/mnt"
victim=$(sed -n '/name = "chunkd-4"/,/^$/s/^pid = //p' "$work/gfs/cluster.toml")
held=$(du -sm "$work"/gfs/chunkd-4 | cut -f1)

cat >"$work/load.py" <<'PY'
import os, sys, time
mnt, out = sys.argv[1], sys.argv[2]
piece = os.urandom(1 << 20)
n = 0
while True:
    begun = time.monotonic()
    fd = os.open(f"{mnt}/load", os.O_CREAT | os.O_WRONLY, 0o644)
    os.pwrite(fd, piece, (n % 64) << 20); os.fsync(fd); os.close(fd)
    wrote = time.monotonic()
    fd = os.open(f"{mnt}/{n % 43 + 1}", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.pread(fd, 1 << 20, (n * 7 % 64) << 20); os.close(fd)
    read = time.monotonic()
    with open(out, "a") as log:
        log.write(f"{time.time()} {wrote - begun} {read - wrote}\n")
    n += 1
PY
python3 "$work/load.py" "$work/mnt" "$work/load.log" &
load=$!
sleep 10
killed=$(now)
kill -9 "$victim"
below() { "$gfs" status --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["below_goal"])'; }
copying=
until [ -n "$copying" ] && [ "$(below)" = 0 ]; do
    [ -n "$copying" ] || [ "$(below)" -le 1 ] || copying=$(now)
    sleep 0.2
done
healthy=$(now)
python3 - "$work/load.log" "$killed" "$copying" "$healthy" "$held" "$disk" "$copied" <<'PY'
import statistics as st, sys
log, (killed, copying, healthy, held, disk, copied) = sys.argv[1], map(float, sys.argv[2:])
rows = [tuple(map(float, line.split())) for line in open(log)]
mib = 1.048576
rate = held * mib / (healthy - copying)
print(f"{held:.0f} MiB held by the killed server; copying began {copying - killed:.1f} s after the kill and took {healthy - copying:.1f} s: "
      f"{rate:.0f} MB/s, {100 * rate / copied:.0f} % of the {copied:.0f} MB/s that the disk copies ({disk:.0f} MB/s when it only writes)")
def say(what, part):
    writes, reads = [r[1] * 1e3 for r in part], [r[2] * 1e3 for r in part]
    print(f"{what:28} {len(part):5} rounds, write and fsync {st.median(writes):6.1f} ms (longest {max(writes):7.1f}), read {st.median(reads):5.1f} ms (longest {max(reads):6.1f})")
say("before", [r for r in rows if r[0] < killed])
say("from the kill to copying", [r for r in rows if killed <= r[0] < copying])
say("while chunks were copied", [r for r in rows if copying <= r[0] < healthy])
PY
