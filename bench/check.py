#!/usr/bin/env python3
"""Measures two mounts in alternating pairs, and judges whether the second is slower. For bench/check.sh.

  check.py measure OLD_MOUNT NEW_MOUNT PAIRS OUT.json [ROW...]
  check.py suspects LOSS RESULT.json                    names of the rows that seem to have lost
  check.py table LOSS OUT.md COMMAND FIRST.json [SECOND.json]     ends with 10 if a row has lost in both
"""
import io
import json
import math
import mmap
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import time

import steps

LARGE = 128 * steps.MIB
NAMES = 3000
SMALL = 800
SECONDS = 1.0  # of random reads and writes
LIMIT = 10.0  # of any other row
# A row has lost in one measurement when so few pairs or fewer would have gone that way by chance, were there no difference.
CHANCE = 0.05


class Side:
    """One mount, and the rows that are measured there; each answers (amount, seconds).

    Caches are dropped for both sides at once, so that a row must not find warm what only the side has left that was measured last: it
    begins cold, or warms itself up first.
    """

    def __init__(self, mount, archive):
        self.root = os.path.join(mount, "check.%d" % os.getpid())
        self.archive = archive
        os.mkdir(self.root)
        self.random = random.Random(7)

    def path(self, *words):
        return os.path.join(self.root, *words)

    def _timed(self, calls):
        begun = time.monotonic()
        return steps.each(calls, LIMIT), time.monotonic() - begun

    def _pieces(self, flags, call):
        """Calls with offsets of 4 KiB pieces of the large file for a while, then syncs it if it was written."""
        target = os.open(self.path("large"), flags)
        count = os.fstat(target).st_size // 4096
        begun = time.monotonic()
        done = 0
        while time.monotonic() - begun < SECONDS:
            for _ in range(16):
                call(target, self.random.randrange(count) * 4096)
            done += 16
        if flags & os.O_WRONLY:
            os.fsync(target)
        taken = time.monotonic() - begun
        os.close(target)
        return done, taken

    def seq_write(self):
        begun = time.monotonic()
        amount = steps.write_file(self.path("large"), LARGE)
        return amount / 1e6, time.monotonic() - begun

    def seq_read(self):
        begun = time.monotonic()
        amount = steps.read_file(self.path("large"))
        return amount / 1e6, time.monotonic() - begun

    def rand_read(self):
        piece = mmap.mmap(-1, 4096)
        return self._pieces(os.O_RDONLY | os.O_DIRECT, lambda target, at: os.preadv(target, [piece], at))

    def rand_write(self):
        steps.read_file(self.path("large"))
        piece = steps.BLOCK[:4096]
        return self._pieces(os.O_WRONLY, lambda target, at: os.pwrite(target, piece, at))

    def _names(self, call, shuffle=True):
        order = list(range(NAMES))
        if shuffle:
            self.random.shuffle(order)
        return self._timed(lambda number=number: call(self.path("names", "f%06d" % number)) for number in order)

    def create(self):
        shutil.rmtree(self.path("names"), ignore_errors=True)
        os.mkdir(self.path("names"))
        return self._names(steps.empty_file, shuffle=False)

    def stat(self):
        return self._names(os.stat)

    def open_close(self):
        self._names(os.stat)
        return self._names(lambda path: os.close(os.open(path, os.O_RDONLY)))

    def ls(self):
        begun = time.monotonic()
        listed = subprocess.run(["ls", "-l", self.path("names")], stdout=subprocess.PIPE, check=True).stdout
        return listed.count(b"\n") - 1, time.monotonic() - begun

    def unlink(self):
        self._names(os.stat)
        return self._names(os.unlink, shuffle=False)

    def _small(self, call):
        return self._timed(lambda number=number: call(self.path("small", "s%06d" % number)) for number in range(SMALL))

    def small_write(self):
        os.mkdir(self.path("small"))
        return self._small(steps.small_file)

    def small_read(self):
        done = self._small(steps.read_file)
        shutil.rmtree(self.path("small"))
        return done

    def untar(self):
        os.mkdir(self.path("tree"))
        begun = time.monotonic()
        subprocess.run(["tar", "-xf", self.archive, "-C", self.path("tree")], check=True)
        taken = time.monotonic() - begun
        shutil.rmtree(self.path("tree"))
        return TREE, taken

    def close(self):
        shutil.rmtree(self.root, ignore_errors=True)


TREE = 1000
# Row: its unit, its method, what is cold before (drop_caches), and the rows that it needs to have run before.
ROWS = {
    "seq_write_1M+fsync": ("MB/s", Side.seq_write, 0, []),
    "seq_read_cold": ("MB/s", Side.seq_read, 3, ["seq_write_1M+fsync"]),
    "rand_read_4k_cold": ("op/s", Side.rand_read, 3, ["seq_write_1M+fsync"]),
    "rand_write_4k+fsync": ("op/s", Side.rand_write, 0, ["seq_write_1M+fsync"]),
    "create": ("op/s", Side.create, 0, []),
    "stat_cold": ("op/s", Side.stat, 2, ["create"]),
    "open_close": ("op/s", Side.open_close, 0, ["create"]),
    "ls_l_cold": ("names/s", Side.ls, 2, ["create"]),
    "unlink": ("op/s", Side.unlink, 0, ["create"]),
    "small4k_write": ("files/s", Side.small_write, 0, []),
    "small4k_read_cold": ("files/s", Side.small_read, 3, ["small4k_write"]),
    "untar": ("files/s", Side.untar, 0, []),
}


def make_archive(path):
    """A tree like that of a program's sources, the same at every run."""
    choose = random.Random(20240601)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        folders = ["src/d%02d" % number for number in range(60)]
        for folder in ["src"] + folders:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1700000000
            archive.addfile(entry)
        for number in range(TREE):
            size = int(min(400000, max(120, choose.lognormvariate(8.62, 1.35))))
            entry = tarfile.TarInfo("%s/f%04d.c" % (choose.choice(folders), number))
            entry.size, entry.mode, entry.mtime = size, 0o644, 1700000000
            archive.addfile(entry, io.BytesIO(steps.BLOCK[:size]))


def closure(wanted):
    """The rows that are wanted and those that they need, in order."""
    needed = set()

    def need(row):
        needed.add(row)
        for before in ROWS[row][3]:
            need(before)

    for row in wanted:
        need(row)
    # What an earlier row has made is taken away by a later one of its group.
    if "small4k_write" in needed:
        needed.add("small4k_read_cold")
    return [row for row in ROWS if row in needed]


def measure(mounts, pairs, out, wanted):
    rows = closure(wanted or list(ROWS))
    archive = os.path.join(os.path.dirname(os.path.abspath(out)), "tree.tar")
    make_archive(archive)
    sides = [Side(mount, archive) for mount in mounts]
    rates = {row: [] for row in rows}
    try:
        # The first round warms up both sides and does not count.
        for pair in range(-1, pairs):
            for row in rows:
                unit, method, cold, _ = ROWS[row]
                found = [0.0, 0.0]
                # A B, then B A.
                for which in (0, 1) if pair % 2 == 0 else (1, 0):
                    steps.drop_caches(cold) if cold else os.sync()
                    time.sleep(0.1)
                    amount, taken = method(sides[which])
                    found[which] = amount / taken
                if pair >= 0:
                    rates[row].append(found)
                    print("%2d %-20s %10.1f %10.1f %-7s %5.2f" % (pair + 1, row, *found, unit, found[1] / found[0]), flush=True)
    finally:
        for side in sides:
            side.close()
    with open(out, "w") as sink:
        json.dump({"rows": {row: rates[row] for row in rows if not wanted or row in wanted}}, sink)


def tail(count, most):
    """The chance that of `count` coins at most `most` show heads."""
    return sum(math.comb(count, heads) for heads in range(most + 1)) / 2**count


def verdict(rates, loss):
    """(median old, median new, median ratio, its interval, pairs won, whether the row has lost)."""
    ratios = sorted(new / old for old, new in rates)
    count = len(ratios)
    middle = statistics.median(ratios)
    won = sum(ratio >= 1 for ratio in ratios)
    # The median lies between the k-th ratio from below and from above, but for twice the chance of k - 1 heads.
    k = 0
    while 2 * k + 2 <= count and tail(count, k) <= CHANCE:
        k += 1
    interval = (ratios[k - 1], ratios[count - k]) if k else (0.0, math.inf)
    lost = middle < 1 - loss and tail(count, won) <= CHANCE
    old, new = (statistics.median(side) for side in zip(*rates))
    return old, new, middle, interval, won, lost


def read(path):
    with open(path) as source:
        return json.load(source)["rows"]


def suspects(loss, path):
    for row, rates in read(path).items():
        if verdict(rates, loss)[-1]:
            print(row)


def table(loss, out, command, first, second=None):
    again = read(second) if second else {}
    lines, lost_rows = [], []
    for row, rates in read(first).items():
        shown = [("", rates)] + ([(" (again)", again[row])] if row in again else [])
        verdicts = [verdict(part, loss) for _, part in shown]
        has_lost = len(verdicts) == 2 and all(found[-1] for found in verdicts)
        for (suffix, part), (old, new, middle, (low, high), won, lost) in zip(shown, verdicts):
            word = "LOST" if has_lost and suffix else "seems to lose" if lost else "no loss" if suffix else ""
            cells = [row + suffix, ROWS[row][0], "%.4g" % old, "%.4g" % new, "%.2f" % middle]
            lines.append(cells + ["%.2f-%.2f" % (low, high), "%d of %d" % (won, len(part)), word])
        if has_lost:
            lost_rows.append("%s: %.2f, then %.2f of what it was" % (row, verdicts[0][2], verdicts[1][2]))
    head = ["row", "unit", "old", "new", "new / old", "interval", "pairs won", ""]
    text = "# New beside old\n\nCommand: `%s`; kernel %s, %d processors.\n\n" % (command, platform.release(), os.cpu_count())
    text += "| %s |\n|%s\n" % (" | ".join(head), "---|" * len(head))
    text += "".join("| %s |\n" % " | ".join(cells) for cells in lines)
    text += (
        "\nMedians; `new / old` is the median of the ratios of pairs, measured one right after the other in changing order on two clusters side by side;"
        " between the ends of `interval` it lies with 90 %% or more. A row that is below %.2f and loses so many pairs that chance does it at most once in %d"
        " (a sign test) is measured again on new clusters, and has lost when it loses again.\n" % (1 - loss, round(1 / CHANCE))
    )
    text += "\n%s\n" % ("Lost: " + "; ".join(lost_rows) if lost_rows else "No row has lost.")
    with open(out, "w") as sink:
        sink.write(text)
    print(text)
    for line in lost_rows:
        print("check: %s" % line, file=sys.stderr)
    return 10 if lost_rows else 0


def main():
    what, *words = sys.argv[1:]
    if what == "measure":
        unknown = [row for row in words[4:] if row not in ROWS]
        if unknown:
            raise SystemExit("check: no row %s; there are %s" % (", ".join(unknown), ", ".join(ROWS)))
        measure(words[:2], int(words[2]), words[3], words[4:])
    elif what == "suspects":
        suspects(float(words[0]), words[1])
    elif what == "table":
        return table(float(words[0]), *words[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
