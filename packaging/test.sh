#!/usr/bin/env bash
# Runs every test of gfs: format, lints, unit, property and simulation tests, then end-to-end tests on a real
# kernel mount with pjdfstest and fsx. Needs Rust, gcc and git; installs Debian packages as root when they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

need() { # need COMMAND PACKAGE...
    local command=$1
    shift
    command -v "$command" >/dev/null && return 0
    [ "$(id -u)" = 0 ] || { echo "test.sh: $command is missing: install $* as root (apt-get install $*)" >&2; exit 1; }
    [ -n "${updated:-}" ] || { apt-get update -qq; updated=1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

[ -e /dev/fuse ] || { echo "test.sh: /dev/fuse is missing: load the fuse module (modprobe fuse)" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "test.sh: run as root: the end-to-end tests mount file systems" >&2; exit 1; }
need fusermount3 fuse3
need getfattr attr
need getfacl acl
need setcap libcap2-bin
need rsync rsync
need sqlite3 sqlite3
need python3 python3
need systemd-analyze systemd
need ip iproute2
need tc iproute2
need nft nftables
need nsenter util-linux
need mkfs.ext4 e2fsprogs
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need no-initdb-found postgresql

tools=$PWD/target/tools
for tool in pjdfstest@0.2.2 fsx@0.3.2; do
    [ -x "$tools/bin/${tool%@*}" ] || cargo install --quiet --locked "$tool" --root "$tools"
done
export GFS_TEST_TOOLS=$tools/bin

# Nothing is built twice here, so that what incremental builds keep costs more than it gives.
export CARGO_INCREMENTAL=0

cargo fmt --all --check
cargo clippy --workspace --all-targets -- -D warnings
# One build for all that follows, the programs too. Always the whole workspace: another choice of packages has other features of the
# same crates, and builds them again.
cargo test --workspace --no-run
cargo test --workspace --lib --bins
cargo test --workspace --exclude gfs-e2e --test '*'
# One cluster at a time: each of these tests starts daemons and mounts. The basics come first, fsx, which takes longest, last.
others=$(basename -s .rs -a gfs-e2e/tests/*.rs | grep -vx -e basics -e suites)
for suite in basics $others suites; do
    cargo test --workspace --test "$suite" -- --test-threads=1
done
