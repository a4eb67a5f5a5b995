#!/usr/bin/env bash
# Fails when the present tree is slower than another one: measures both in alternating pairs, on clusters side by side, in one run.
#   bench/check.sh [-b REV] [-n PAIRS] [-l PERCENT] [-r ROW,...] [-o NAME]        default: against HEAD~1, 8 pairs, 15 percent
#   bench/check.sh -p OLD_PROGRAMS NEW_PROGRAMS [-n PAIRS] [-l PERCENT] [-r ROW,...] [-o NAME]   two folders of built programs
# Prints a table, writes it to bench/results/NAME.md if asked, and exits with 1 and a line for each row that has lost; 2 is a wrong use, 3 a failure.
# The other tree is built in target/bench-base, and its programs are kept there under their commit: a second run builds nothing of it.
set -euo pipefail
cd "$(dirname "$0")/.."
. bench/lib.sh
command="$0 $*"
base='HEAD~1' pairs=8 loss=15 name='' old='' new='' rows=()
usage() { sed -n '2,4s/^# *//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
        -p) [ $# -ge 3 ] || usage; old=$(realpath "$2") new=$(realpath "$3"); shift 3 ;;
        -b | -n | -l | -r | -o)
            [ $# -ge 2 ] || usage
            case $1 in -b) base=$2 ;; -n) pairs=$2 ;; -l) loss=$2 ;; -r) IFS=, read -ra rows <<<"$2" ;; -o) name=$2 ;; esac
            shift 2
            ;;
        *) usage ;;
    esac
done
[ "$(id -u)" = 0 ] || { echo "check.sh: run as root: it drops caches" >&2; exit 3; }
# Of four pairs all may go one way by chance more often than once in 20 times: no row could lose.
[ "$pairs" -ge 5 ] || { echo "check.sh: -n $pairs: at least 5 pairs are needed" >&2; exit 2; }
loss=$(python3 -c 'import sys; print(float(sys.argv[1]) / 100)' "$loss")

work=$(mktemp -d /var/tmp/gfs-check.XXXXXX)
down() {
    for side in old new; do
        [ ! -d "$work/$side" ] || "${!side}/gfs" down --dir "$work/$side" --wipe >/dev/null || true
    done
}
lost=
stop() {
    local status=$?
    trap '' INT TERM
    # Whatever fails ends a script with 1; that must not pass for a loss.
    [ "$status" != 1 ] || [ -n "$lost" ] || status=3
    [ -z "$child" ] || { kill "$child" && wait "$child" || true; } 2>/dev/null
    down
    [ ! -d "$work/tree" ] || git worktree remove --force "$work/tree" || true
    sweep "$work"
    exit "$status"
}
trap stop EXIT
trap 'exit 143' TERM INT

if [ -z "$old" ]; then
    commit=$(git rev-parse --verify "$base^{commit}")
    kept=$PWD/target/bench-base
    old=$kept/programs-$commit
    if [ ! -d "$old" ]; then
        git worktree add --quiet --detach "$work/tree" "$commit"
        run env -C "$work/tree" CARGO_TARGET_DIR="$kept" cargo build "${programs_alone[@]}"
        rm -rf "$kept"/programs-*
        mkdir "$old.part"
        cp "$kept"/release/gfs{,-master,-chunkd,-fuse} "$old.part"
        mv "$old.part" "$old"
    fi
    run cargo build "${programs_alone[@]}"
    new=$PWD/target/release
fi

up() { # up SIDE
    mkdir -p "$work/mnt.$1"
    "${!1}/gfs" up --dir "$work/$1" --mount "$work/mnt.$1" --base-port 0 >/dev/null
}
measure() { # measure OUT [ROW...]
    run python3 bench/check.py measure "$work/mnt.old" "$work/mnt.new" "$pairs" "$@"
}
up old
up new
measure "$work/first.json" "${rows[@]}"
down
mapfile -t suspects < <(python3 bench/check.py suspects "$loss" "$work/first.json")
results=("$work/first.json")
if [ ${#suspects[@]} -gt 0 ]; then
    echo "== again, on new clusters: ${suspects[*]}"
    up new
    up old
    measure "$work/second.json" "${suspects[@]}"
    down
    results+=("$work/second.json")
fi
status=0
python3 bench/check.py table "$loss" "${name:+bench/results/}${name:-$work/table}.md" "$command" "${results[@]}" || status=$?
case $status in 0) ;; 10) lost=yes && exit 1 ;; *) exit 3 ;; esac
