#!/usr/bin/env bash
# Operations a second, memory and time to start of a master, against the number of files that it knows.
#   bench/names.sh [-b FOLDER_OF_PROGRAMS] [-f FILL] [-o NAME] [FILES...]      default: target/release, built first; 1e4 1e5 1e6
# 1e7 takes 1 GiB of memory and some six minutes more. FILL is the built example `fill` of gfs-master. Run as root: it drops caches.
# Writes bench/results/NAME.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. bench/lib.sh
command="$0 $*"
programs='' fill='' name=names-$(date +%Y-%m-%d)
while getopts b:f:o: option; do
    case $option in
        b) programs=$(realpath "$OPTARG") ;; f) fill=$(realpath "$OPTARG") ;; o) name=$OPTARG ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- 1e4 1e5 1e6
[ -n "$programs" ] || { build; programs=$PWD/target/release; }
[ -n "$fill" ] || { cargo build --release --quiet -p gfs-master --example fill; fill=$PWD/target/release/examples/fill; }
work=$(mktemp -d /var/tmp/gfs-names.XXXXXX)
trap 'sweep "$work"' EXIT
trap 'exit 143' TERM INT
run python3 bench/names.py "$programs" "$fill" "$work" "bench/results/$name.md" "$command" "$@"
