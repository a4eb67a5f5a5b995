#!/usr/bin/env bash
# Measures gfs beside ext4 and MooseFS in one run and writes a table of ratios, and one of the memory that daemons and mount took.
#   bench/compare.sh [-b PROGRAMS] [-n ROUNDS] [-q] [-o NAME] [-g GROUPS] [PEER...]      default peers: ext4 moosefs
# Peer `uring` is gfs again, over io_uring: the kernel's switch for it is on meanwhile.
# Needs fsbench.py and the peer scripts: GFS_SHARED names the folder that holds bench/ and peers/ (default ../shared).
# -b: a folder of built programs (else target/release, built first); -q: fsbench's quick sizes; -g: only these groups of fsbench (seq,par,rand,meta1,meta4,bigdir,small,tree).
set -euo pipefail
cd "$(dirname "$0")/.."
. bench/lib.sh
shared=${GFS_SHARED:-../shared}
rounds=1 quick='' name=$(date +%Y-%m-%d) groups='' programs=''
while getopts b:n:qo:g: option; do
    case $option in
        b) programs=$(realpath "$OPTARG") ;;
        n) rounds=$OPTARG ;; q) quick=--quick ;; o) name=$OPTARG ;; g) groups="--only $OPTARG" ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
peers=${*:-ext4 moosefs}
[ -x "$shared/bench/fsbench.py" ] || [ -f "$shared/bench/fsbench.py" ] || { echo "compare.sh: no fsbench.py in $shared/bench: set GFS_SHARED" >&2; exit 1; }

[ -n "$programs" ] || { build; programs=$PWD/target/release; }
gfs=$programs/gfs
work=$(mktemp -d /var/tmp/gfs-bench.XXXXXX)
cluster=$work/gfs
current=
switch=/sys/module/fuse/parameters/enable_uring
before=$(cat "$switch" 2>/dev/null || true)
stop() {
    [ -z "$before" ] || echo "$before" >"$switch"
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

processes() { # NAME=PID of everything that belongs to a system
    local name
    case $1 in
        gfs | uring) sed -n 's/^name = "\(.*\)"/\1=/p; s/^pid = //p' "$cluster/cluster.toml" | paste -d '' - - ;;
        ext4) ;;
        *) for name in master cs1 cs2 cs3 mount; do echo "$name=$("$shared/peers/$1.sh" pid "$name" 2>/dev/null || true)"; done ;;
    esac
}
memory() { # memory SYSTEM WHEN
    local all
    mapfile -t all < <(processes "$1")
    [ ${#all[@]} -eq 0 ] || python3 bench/memory.py note "$work/$1.memory" "$2" "${all[@]}"
}

for round in $(seq "$rounds"); do
    for system in gfs $peers; do
        mount=$work/mnt.$system
        mkdir -p "$mount"
        case $system in
            gfs) current=gfs; "$gfs" up --dir "$cluster" --mount "$mount" --base-port 0 ;;
            uring)
                current=gfs
                echo Y >"$switch"
                "$gfs" up --dir "$cluster" --mount "$mount" --base-port 0
                ;;
            ext4) ;;
            *) current=$system; "$shared/peers/$system.sh" up "$mount" ;;
        esac
        echo "== $system, round $round"
        memory "$system" start
        bench "$system" "$mount" "$round"
        memory "$system" end
        stop
    done
done
python3 bench/table.py "bench/results/$name.md" "$0 -n $rounds $quick $groups $peers" "$work"/*.json
notes=()
for system in gfs $peers; do
    [ ! -e "$work/$system.memory" ] || notes+=("$system=$work/$system.memory")
done
{ echo && python3 bench/memory.py table "${notes[@]}"; } | tee -a "bench/results/$name.md"
