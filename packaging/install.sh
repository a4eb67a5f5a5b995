#!/bin/sh
# Installs gfs from a release build: binaries, mount helper, units, default configuration, completions.
#   packaging/install.sh [--prefix DIR] [--destdir DIR] [--from DIR] [--uninstall]
# The programs come from --from, else from the directory that GFS_BINARIES names, else from target/release.
# Run again, it replaces what it installed. It never touches data, and keeps configuration that was changed.
set -eu

prefix=/usr/local
destdir=
from=
uninstall=
die() { echo "install.sh: $*" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
        --prefix) prefix=${2:?--prefix needs a directory}; shift 2 ;;
        --destdir) destdir=${2:?--destdir needs a directory}; shift 2 ;;
        --from) from=${2:?--from needs a directory}; shift 2 ;;
        --uninstall) uninstall=1; shift ;;
        *) die "unknown option $1: [--prefix DIR] [--destdir DIR] [--from DIR] [--uninstall]" ;;
    esac
done
case $prefix in /*) ;; *) die "--prefix must be an absolute path" ;; esac

here=$(cd "$(dirname "$0")" && pwd)
from=${from:-${GFS_BINARIES:-$here/../target/release}}
programs="gfs gfs-master gfs-chunkd gfs-fuse"
units="gfs-master.service gfs-chunkd.service gfs-mount@.service"
bin=$prefix/bin
unit_dir=/etc/systemd/system
[ "$prefix" = /usr ] && unit_dir=/usr/lib/systemd/system
lib=/usr/lib
doc=/usr/share/doc/gfs
bash_completion=/usr/share/bash-completion/completions/gfs
zsh_completion=/usr/share/zsh/vendor-completions/_gfs
live=
[ -z "$destdir" ] && [ "$(id -u)" = 0 ] && live=1
has_systemd() { [ -n "$live" ] && [ -d /run/systemd/system ]; }

put() { # put MODE SOURCE TARGET: replaced in one step, also while it runs
    mkdir -p "$destdir$(dirname "$3")"
    cp "$2" "$destdir$3.new"
    chmod "$1" "$destdir$3.new"
    mv -f "$destdir$3.new" "$destdir$3"
}

put_config() { # put_config NAME: kept when it differs from what was installed before
    target=/etc/gfs/$1
    stamp=$lib/gfs/config/$1
    if [ -e "$destdir$target" ] && ! cmp -s "$destdir$target" "$here/config/$1"; then
        if [ ! -e "$destdir$stamp" ] || ! cmp -s "$destdir$target" "$destdir$stamp"; then
            echo "kept $target, which was changed; the new default is $stamp"
            put 644 "$here/config/$1" "$stamp"
            return
        fi
    fi
    put 644 "$here/config/$1" "$target"
    put 644 "$here/config/$1" "$stamp"
}

if [ -n "$uninstall" ]; then
    if has_systemd; then
        systemctl disable --now gfs-chunkd.service gfs-master.service 2>/dev/null || true
    fi
    for config in master chunkd fuse client; do
        if cmp -s "$destdir/etc/gfs/$config.toml" "$destdir$lib/gfs/config/$config.toml" 2>/dev/null; then
            rm -f "$destdir/etc/gfs/$config.toml"
        elif [ -e "$destdir/etc/gfs/$config.toml" ]; then
            echo "kept /etc/gfs/$config.toml, which was changed"
        fi
        rm -f "$destdir$lib/gfs/config/$config.toml"
    done
    for program in $programs; do rm -f "$destdir$bin/$program"; done
    for unit in $units; do rm -f "$destdir$unit_dir/$unit"; done
    rm -f "$destdir/sbin/mount.gfs" "$destdir$lib/sysusers.d/gfs.conf" "$destdir$lib/tmpfiles.d/gfs.conf" \
        "$destdir$bash_completion" "$destdir$zsh_completion"
    rm -rf "$destdir$doc"
    rmdir "$destdir$lib/gfs/config" "$destdir$lib/gfs" "$destdir/etc/gfs" 2>/dev/null || true
    if has_systemd; then systemctl daemon-reload; fi
    # Only what is empty goes.
    for directory in /var/lib/gfs/master /var/lib/gfs/chunkd /var/lib/gfs /var/log/gfs; do
        rmdir "$destdir$directory" 2>/dev/null || true
    done
    if [ -e "$destdir/var/lib/gfs" ]; then echo "removed gfs; data in /var/lib/gfs is kept"; else echo "removed gfs"; fi
    exit 0
fi

for program in $programs; do
    [ -x "$from/$program" ] || die "$from/$program is missing: run cargo build --release first, or name the directory with --from or GFS_BINARIES"
done
for program in $programs; do put 755 "$from/$program" "$bin/$program"; done

# mount(8) looks for its helpers in /sbin.
mkdir -p "$destdir/sbin"
ln -sfn "$bin/gfs" "$destdir/sbin/mount.gfs"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for unit in $units; do
    sed "s|@BINDIR@|$bin|g" "$here/systemd/$unit" >"$work/unit"
    put 644 "$work/unit" "$unit_dir/$unit"
done
put 644 "$here/systemd/gfs.sysusers" "$lib/sysusers.d/gfs.conf"
put 644 "$here/systemd/gfs.tmpfiles" "$lib/tmpfiles.d/gfs.conf"
put 644 "$here/systemd/mnt-gfs.mount.example" "$doc/mnt-gfs.mount.example"
for page in README.md SECURITY.md CHANGELOG.md; do put 644 "$here/../$page" "$doc/$page"; done
for config in master.toml chunkd.toml fuse.toml client.toml; do put_config "$config"; done
if "$from/gfs" completions bash >"$work/bash" && "$from/gfs" completions zsh >"$work/zsh"; then
    put 644 "$work/bash" "$bash_completion"
    put 644 "$work/zsh" "$zsh_completion"
fi

if [ -n "$live" ]; then
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers "$lib/sysusers.d/gfs.conf"
        systemd-tmpfiles --create "$lib/tmpfiles.d/gfs.conf"
    fi
    if has_systemd; then systemctl daemon-reload; fi
    command -v fusermount3 >/dev/null || echo "to mount, install package fuse3: apt-get install fuse3"
fi
echo "installed gfs in $destdir$bin; next: systemctl enable --now gfs-master gfs-chunkd, or gfs up"
