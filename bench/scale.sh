#!/usr/bin/env bash
# Aggregate rates of several clients on several chunk servers, each daemon and mount in a network namespace of its own.
#   bench/scale.sh [-b FOLDER_OF_PROGRAMS] [-c CLIENTS,...] [-s SERVERS,...] [-m MIB] [-f FILES] [-n ROUNDS] [-o NAME]
# Defaults: target/release, built first; one round; 1,2,4,8 clients; 1,3,6 chunk servers; 128 MiB and 2000 small files in all, whatever the
# number of clients (about two minutes). Copies: three, or as many as there are servers. Run as root. Writes bench/results/NAME.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. bench/lib.sh
command="$0 $*"
programs='' clients=1,2,4,8 servers=1,3,6 size=128 files=2000 rounds=1 name=scale-$(date +%Y-%m-%d)
while getopts b:c:s:m:f:n:o: option; do
    case $option in
        b) programs=$(realpath "$OPTARG") ;; c) clients=$OPTARG ;; s) servers=$OPTARG ;;
        m) size=$OPTARG ;; f) files=$OPTARG ;; n) rounds=$OPTARG ;; o) name=$OPTARG ;;
        *) exit 2 ;;
    esac
done
[ -n "$programs" ] || { build; programs=$PWD/target/release; }
work=$(mktemp -d /var/tmp/gfs-scale.XXXXXX)
trap 'sweep "$work"' EXIT
trap 'exit 143' TERM INT
run python3 bench/scale.py "$programs" "$work" "bench/results/$name.md" "$command" "$clients" "$servers" "$size" "$files" "$rounds"
