#!/usr/bin/env python3
"""Aggregate rates of 1, 2, 4, ... clients on 1, 3, ... chunk servers, each on a host of its own. For bench/scale.sh.

  scale.py PROGRAMS WORK OUT.md COMMAND CLIENTS,... SERVERS,... TOTAL_MIB FILES ROUNDS
"""
import os
import platform
import shutil
import statistics
import sys

import daemons
import steps

LIMIT = 20.0  # seconds of one step
COLUMNS = [("write", "MB/s"), ("read", "MB/s"), ("create 4 KiB", "files/s"), ("stat", "calls/s")]


def bring_up(cluster, servers, clients):
    """Host 1 is the master's, then come the chunk servers, then the clients; answers the mounts."""
    network = cluster.network
    at = lambda host: "%s:7400" % network.address(host)
    own = lambda name: os.path.join(cluster.work, "data", name)
    words = ["--data", own("master"), "--listen", at(1), "--http", network.address(1) + ":7401", "--replicas", str(min(3, servers))]
    cluster.start("master", "gfs-master", words, host=1)
    for number in range(1, servers + 1):
        host, name = 1 + number, "chunkd-%d" % number
        words = ["--data", own(name), "--listen", at(host), "--http", network.address(host) + ":7401", "--master", at(1), "--host", name]
        cluster.start(name, "gfs-chunkd", words, host=host)
    return [cluster.mount("mnt-%d" % number, at(1), host=1 + servers + number)[0] for number in range(1, clients + 1)]


def measure(mounts, count, size, files):
    """The aggregate rates of `count` clients at a time, one process on the mount of each."""
    place = lambda number: os.path.join(mounts[number], "c%d-%d" % (count, number))
    for number in range(count):
        os.mkdir(place(number))
    each_size, each_files = max(1, size // count) * steps.MIB, max(1, files // count)

    def small(call):
        return lambda worker: steps.each((lambda n=n: call("%s/s%06d" % (place(worker), n)) for n in range(each_files)), LIMIT)

    def step(work, cold=0, unit=1):
        steps.drop_caches(cold or 2)
        done, seconds = steps.together(count, work)
        return done / unit / seconds

    # What was made on one mount is asked for on the next one: what a client has made it knows already.
    other = lambda number: "%s/c%d-%d" % (mounts[(number + 1) % len(mounts)], count, number)

    def look(worker):
        names = ("%s/s%06d" % (other(worker), n) for n in range(each_files))
        return steps.each((lambda name=name: os.stat(name) for name in names), LIMIT)

    rates = [
        step(lambda worker: steps.write_file(place(worker) + "/large", each_size), unit=1e6),
        step(lambda worker: steps.read_file(other(worker) + "/large"), cold=3, unit=1e6),
        step(small(steps.small_file)),
        step(look),
    ]
    for number in range(count):
        shutil.rmtree(place(number))
    return rates


def main():
    daemons.exit_on_signals()
    programs, work, out, command, clients, servers, size, files, rounds = sys.argv[1:]
    clients, servers = ([int(number) for number in text.split(",")] for text in (clients, servers))
    lines = []
    hosts = max(2, *clients)
    for chunk_servers in servers:
        network = daemons.Network(work, 1 + chunk_servers + hosts)
        cluster = daemons.Cluster(programs, work, network)
        try:
            mounts = bring_up(cluster, chunk_servers, hosts)
            warm = os.path.join(mounts[0], "warm")
            steps.write_file(warm, 16 * steps.MIB)
            os.unlink(warm)
            found = {count: [] for count in clients}
            for _ in range(int(rounds)):
                for count in clients:
                    found[count].append(measure(mounts, count, int(size), int(files)))
                    print(chunk_servers, count, *["%.0f" % rate for rate in found[count][-1]], flush=True)
            for count in clients:
                middle = [statistics.median(rates) for rates in zip(*found[count])]
                lines.append([chunk_servers, min(3, chunk_servers), count] + ["%.0f" % rate for rate in middle])
        finally:
            cluster.close()
            network.close()
            shutil.rmtree(os.path.join(work, "data"), ignore_errors=True)
    head = ["chunk servers", "copies", "clients"] + ["%s, %s" % column for column in COLUMNS]
    text = "# More clients, more chunk servers\n\nCommand: `%s`; kernel %s.\n\n" % (command, platform.release())
    text += "| %s |\n|%s\n" % (" | ".join(head), "---|" * len(head))
    text += "".join("| %s |\n" % " | ".join(map(str, line)) for line in lines)
    text += (
        "\nAggregate rates of one process on each client's mount, medians of %s round(s); %s MiB and %s files in all, whatever the number of clients. Master, chunk servers and mounts each have a network namespace"
        " of their own, joined by a bridge, so that no replica is read in place. Files are read and looked up by another client than the one that made them and holds their directory, which it gives back then;"
        " reads from cold caches. All of it shares %d processors and one disk, with others beside: one client keeps them busy already, so that more of anything cannot be faster here."
        " The table shows that nothing collapses; it does not show how gfs scales on machines of their own.\n" % (rounds, size, files, os.cpu_count())
    )
    with open(out, "w") as sink:
        sink.write(text)
    print(text)


if __name__ == "__main__":
    main()
