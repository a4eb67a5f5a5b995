#!/usr/bin/env bash
# Measures gfs beside ext4 and MooseFS in one run and writes a table of ratios.
#   bench/compare.sh [-n ROUNDS] [-q] [-o NAME] [-g GROUPS] [PEER...]      default peers: ext4 moosefs
# Needs fsbench.py and the peer scripts: GFS_SHARED names the folder that holds bench/ and peers/ (default ../shared).
# -q: fsbench's quick sizes; -g: only these groups of fsbench (seq,par,rand,meta1,meta4,bigdir,small,tree).
set -euo pipefail
cd "$(dirname "$0")/.."
shared=${GFS_SHARED:-../shared}
rounds=1 quick= name=$(date +%Y-%m-%d) groups=
while getopts n:qo:g: option; do
    case $option in
        n) rounds=$OPTARG ;; q) quick=--quick ;; o) name=$OPTARG ;; g) groups="--only $OPTARG" ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
peers=${*:-ext4 moosefs}
[ -x "$shared/bench/fsbench.py" ] || [ -f "$shared/bench/fsbench.py" ] || { echo "compare.sh: no fsbench.py in $shared/bench: set GFS_SHARED" >&2; exit 1; }

# The four alone, as they are shipped: with the whole workspace the tests of gfs-sim switch a feature of theirs on.
cargo build --release --quiet -p gfs-cli -p gfs-master -p gfs-chunkd -p gfs-fuse
gfs=$PWD/target/release/gfs
work=$(mktemp -d /var/tmp/gfs-bench.XXXXXX)
cluster=$work/gfs
current=
stop() {
    case $current in
        gfs) "$gfs" down --dir "$cluster" --wipe >/dev/null || true ;;
        ext4 | '') ;;
        *) "$shared/peers/$current.sh" down || true ;;
    esac
    current=
}
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 143' TERM INT

bench() { # bench LABEL MOUNT ROUND
    # shellcheck disable=SC2086
    timeout 400 python3 "$shared/bench/fsbench.py" "$2" $quick $groups --label "$1" --own "$cluster,gfs-" --json "$work/$1.$3.json"
}

for round in $(seq "$rounds"); do
    for system in gfs $peers; do
        mount=$work/mnt.$system
        mkdir -p "$mount"
        case $system in
            gfs) current=gfs; "$gfs" up --dir "$cluster" --mount "$mount" --base-port 17400 ;;
            ext4) ;;
            *) current=$system; "$shared/peers/$system.sh" up "$mount" ;;
        esac
        echo "== $system, round $round"
        bench "$system" "$mount" "$round"
        stop
    done
done
python3 bench/table.py "bench/results/$name.md" "$0 -n $rounds $quick $groups $peers" "$work"/*.json
