# shellcheck shell=bash
# For the scripts here: programs that are built as they are shipped, and runs that leave nothing behind, however they end.

# The four alone: with the whole workspace the tests of gfs-sim switch a feature of theirs on.
# shellcheck disable=SC2034
programs_alone=(--release --quiet -p gfs-cli -p gfs-master -p gfs-chunkd -p gfs-fuse)
build() { cargo build "${programs_alone[@]}"; }

child=
run() { # run COMMAND...: as in the foreground, but a signal is acted on at once
    "$@" &
    child=$!
    local status=0
    wait "$child" || status=$?
    child=
    return "$status"
}

# Ends what runs, and what it has noted in FOLDER/pids (the process) and FOLDER/mounts, and removes its network namespaces.
sweep() { # sweep FOLDER
    trap '' INT TERM
    [ -z "$child" ] || { kill "$child" && wait "$child" || true; } 2>/dev/null
    local note at
    for note in "$1"/mounts/*; do
        [ ! -e "$note" ] || { at=$(cat "$note"); fusermount3 -uz -q "$at" 2>/dev/null || true; }
    done
    for note in "$1"/pids/*; do
        # Its command line tells that it is ours: a number may have been given to somebody else meanwhile.
        [ ! -e "$note" ] || ! tr '\0' ' ' <"/proc/$(basename "$note")/cmdline" 2>/dev/null | grep -qF "$1" || kill -9 "$(basename "$note")" || true
    done
    for note in "$1"/namespaces/*; do
        [ ! -e "$note" ] || ip netns del "$(basename "$note")" 2>/dev/null || true
    done
    rm -rf "$1"
}
