#!/usr/bin/env bash
# One command from a fresh checkout to a mounted cluster: builds, starts one master and three chunk servers, mounts,
# copies a real file in and out, compares, and leaves the mount for you.
#   packaging/try.sh [--binaries DIR] [MOUNTPOINT]        default ./gfs-mnt; data in ./gfs-data
# Needs Rust, gcc and git; with --binaries none of them: it takes the programs from DIR and builds nothing.
# As root it installs package fuse3 when fusermount3 is missing.
set -euo pipefail
fail() { echo "try.sh: $*" >&2; exit 1; }
usage() { echo "try.sh: $*: [--binaries DIR] [MOUNTPOINT]" >&2; exit 2; }

binaries=
mountpoint=
while [ $# -gt 0 ]; do
    case $1 in
        --binaries) binaries=$(realpath -- "${2:?--binaries needs a directory}"); shift 2 ;;
        -*) usage "unknown option $1" ;;
        *) [ -z "$mountpoint" ] || usage "more than one mount point"; mountpoint=$(realpath -m -- "$1"); shift ;;
    esac
done
cd "$(dirname "$0")/.."
mountpoint=${mountpoint:-$PWD/gfs-mnt}

if [ -z "$binaries" ]; then
    command -v cargo >/dev/null || fail "cargo is missing: install Rust from https://rustup.rs"
    command -v cc >/dev/null || fail "a C compiler is missing: apt-get install gcc"
fi
[ -e /dev/fuse ] || fail "/dev/fuse is missing: modprobe fuse, as root (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
if ! command -v fusermount3 >/dev/null; then
    [ "$(id -u)" = 0 ] || fail "fusermount3 is missing: as root, apt-get install fuse3"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq fuse3 >/dev/null
fi

if [ -z "$binaries" ]; then
    cargo build --release --quiet -p gfs-cli -p gfs-master -p gfs-chunkd -p gfs-fuse
    binaries=${CARGO_TARGET_DIR:-target}/release
fi
gfs=$binaries/gfs
[ -x "$gfs" ] || fail "$gfs is missing: name the directory of the programs with --binaries"

# Ports of the system's choice: a try-out must not fail because something has 7400.
base_port=()
[ -e gfs-data/cluster.toml ] || base_port=(--base-port 0)
"$gfs" up --mount "$mountpoint" "${base_port[@]}"

sample=$binaries/gfs-master
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$sample" "$mountpoint/sample"
cp "$mountpoint/sample" "$work/through-mount"
"$gfs" get /sample "$work/through-command"
cmp "$sample" "$work/through-mount" || fail "the copy through the mount differs"
cmp "$sample" "$work/through-command" || fail "the copy through gfs get differs"
rm "$mountpoint/sample"
echo "copied $(wc -c <"$sample") bytes in and out, equal through the mount and through the command"
echo "try, in $PWD: cp -r docs $mountpoint/ && $gfs status; stop with: $gfs down"
