#!/usr/bin/env python3
"""How a master does with very many files. For bench/names.sh.

  names.py PROGRAMS FILL WORK OUT.md COMMAND FILES...
"""
import os
import platform
import random
import shutil
import signal
import subprocess
import sys

import daemons
import steps

EACH = 1000  # files of a directory, as `fill` makes them
WORKERS = 4
CALLS = 2000  # of each worker
LIMIT = 10.0  # seconds of one step
PORT, HTTP = daemons.free_ports(2)
# No chunk server runs: the master shall not set about to mend what the filled files' chunks lack.
SETTINGS = {"GFS_MASTER_SETTLE_MS": "86400000", "GFS_MASTER_REPLACE_AFTER_MS": "86400000"}


class Run:
    def __init__(self, programs, work, files):
        self.cluster = daemons.Cluster(programs, work)
        self.data = os.path.join(work, "master")
        self.folders = ["many/%07d" % number for number in range(-(-files // EACH))]
        self.files = files
        self.choose = random.Random(files)
        self.pid = None

    def master(self):
        words = ["--data", self.data, "--listen", "127.0.0.1:%d" % PORT, "--http", "127.0.0.1:%d" % HTTP]
        self.pid, seconds = self.cluster.start("master", "gfs-master", words + ["--log-level", "warn"], settings=SETTINGS)
        return seconds

    def step(self, prepare):
        """Has four workers do what prepare(mount) gives for each, on a mount that knows nothing yet: (a second, master's us for each)."""
        mount, _ = self.cluster.mount("mnt", "127.0.0.1:%d" % PORT)
        steps.drop_caches(2)
        work = prepare(mount)
        before = daemons.cpu(self.pid)
        done, seconds = steps.together(WORKERS, work)
        used = daemons.cpu(self.pid) - before
        self.cluster.unmount("mnt")
        return done / seconds, 1e6 * used / done

    def spread(self):
        """Directories of each worker, from all over the namespace."""
        some = self.choose.sample(self.folders, min(len(self.folders), 10 * WORKERS))
        return [some[worker::WORKERS] for worker in range(WORKERS)]

    def stat(self, mount):
        mine = self.spread()

        def work(worker):
            places = [(folder, number) for folder in mine[worker] for number in range(min(EACH, self.files))]
            chosen = random.Random(worker).sample(places, min(CALLS, len(places)))
            return steps.each((lambda place=place: os.stat("%s/%s/f%07d" % (mount, *place)) for place in chosen), LIMIT)

        return work

    def readdir(self, mount):
        mine = self.spread()
        return lambda worker: sum(len(os.listdir(os.path.join(mount, folder))) for folder in mine[worker])

    def _in_spread(self, mount, call):
        mine = self.once  # creations and removals meet in the same directories

        def work(worker):
            names = ("%s/%s/new-%d-%05d" % (mount, mine[worker][number % len(mine[worker])], worker, number) for number in range(CALLS))
            return steps.each((lambda name=name: call(name) for name in names), LIMIT)

        return work

    def create(self, mount):
        self.once = self.spread()
        return self._in_spread(mount, steps.empty_file)

    def unlink(self, mount):
        def call(name):
            try:
                os.unlink(name)
            except FileNotFoundError:  # The creations may have run out of time.
                pass

        return self._in_spread(mount, call)

    def create_own(self, mount):
        def work(worker):
            own = os.path.join(mount, "own-%d" % worker)
            os.mkdir(own)
            return steps.each((lambda number=number: steps.empty_file("%s/f%05d" % (own, number)) for number in range(CALLS)), LIMIT)

        return work


def empty(programs, work):
    """Anonymous memory of a master that knows nothing."""
    run = Run(programs, work, 0)
    try:
        run.master()
        return daemons.status(run.pid)["RssAnon"]
    finally:
        run.cluster.close()
        shutil.rmtree(run.data, ignore_errors=True)


def measure(programs, fill, work, files, base):
    run = Run(programs, work, files)
    try:
        told = subprocess.run([fill, run.data, str(files), str(EACH)], check=True, stdout=subprocess.PIPE).stdout.decode().strip()
        print(told, flush=True)
        start = run.master()
        memory = daemons.status(run.pid)
        found = {name: run.step(getattr(run, name)) for name in ("stat", "readdir", "create", "unlink", "create_own")}
        peak = daemons.status(run.pid)["VmHWM"]
        run.cluster.stop("master", signal.SIGKILL)
        again = run.master()
        cells = ["%.0e" % files, "%.2f" % start, "%.2f" % again]
        cells += ["%.0f" % (memory["VmRSS"] / steps.MIB), "%.0f" % ((memory["RssAnon"] - base) / files), "%.0f" % (peak / steps.MIB)]
        cells += ["%.0f (%.0f)" % found[name] for name in ("create", "create_own", "stat", "readdir", "unlink")]
        print(" | ".join(cells), flush=True)
        return cells, told
    finally:
        run.cluster.close()
        shutil.rmtree(run.data, ignore_errors=True)


HEAD = ["files", "start, s", "start after a kill, s", "RSS, MiB", "bytes a file", "peak RSS, MiB", "create", "create, own directory", "stat", "readdir", "unlink"]
NOTE = """
Each size has a master of its own, the directory of which is made beforehand (`fill`: the same commands applied, the checkpoint written; no log): 1,000 files
in a directory, each file with one chunk and three replicas on servers that do not run. `start` is from the program's start to READY; after a kill (SIGKILL) the log of the steps
is read too. `RSS` is that after the start, `bytes a file` what of it is anonymous,
less that of an empty master, divided by the files; `peak` includes the steps. The operations are a second, by four processes on one mount that is
fresh for each step, in 40 directories chosen from all over (readdir: names a second); in brackets the master's CPU in us for each. `create` and `unlink` in directories that exist already
are a message to the master each; in directories that the mount has made itself it decides by itself and tells hundreds at a time. All on %d processors, which others used too: compare
the CPU, not the rates.
"""


def main():
    daemons.exit_on_signals()
    programs, fill, work, out, command, *sizes = sys.argv[1:]
    base = empty(programs, work)
    rows, told = zip(*[measure(programs, fill, work, int(float(size)), base) for size in sizes])
    text = "# A master of very many files\n\nCommand: `%s`; kernel %s.\n\n" % (command, platform.release())
    text += "| %s |\n|%s\n" % (" | ".join(HEAD), "---|" * len(HEAD))
    text += "".join("| %s |\n" % " | ".join(cells) for cells in rows)
    text += NOTE % os.cpu_count() + "\n" + "".join("- %s\n" % line for line in told)
    with open(out, "w") as sink:
        sink.write(text)
    print(text)


if __name__ == "__main__":
    main()
