#!/usr/bin/env python3
"""Memory of daemons and mounts under a benchmark, beside what their buffers may hold. For bench/compare.sh.

  memory.py note FILE WHEN NAME=PID...            adds what the kernel says of each process now; WHEN: start, end
  memory.py table LABEL=FILE...                   Markdown: each process at the start, at its peak, at the end, and its budget
"""
import json
import os
import re
import sys

import daemons

MIB = 1 << 20
KINDS = [("master", "master"), ("chunkd", "chunk server"), ("mount", "mount")]
# What each daemon may hold in buffers: the bound, where it is set, how often it counts. A master's tables have no bound.
BUDGETS = {
    "master": [
        ("log entries kept for followers", "gfs-master/src/consensus/log_store.rs", r"CACHE_BYTES: usize = ([^;]+);", 1),
        ("a batch on its way to the log", "gfs-master/src/consensus/batcher.rs", r"COMMAND_BYTES: usize = ([^;]+);", 1),
    ],
    "chunkd": [
        ("committed bytes on their way to their place, a disk", "gfs-chunkd/src/store/types.rs", r"overlay_bytes: (\d+ << \d+),", 1),
        ("buffers of direct writes that are kept", "gfs-chunkd/src/store/direct.rs", r"BUFFER: usize = ([^;]+);", 8),
    ],
    "mount": [
        ("bytes in flight", "gfs-client/src/client.rs", r"bytes_in_flight: (\d+ << \d+),", 1),
        ("large writes behind", "gfs-client/src/files/behind.rs", r"const MOST_LARGE: usize = ([^;]+);", 1),
        ("other writes behind", "gfs-client/src/files/behind.rs", r"const MOST: usize = ([^;]+);", 1),
        ("small files read ahead", "gfs-client/src/files/ahead.rs", r"const SMALL: u64 = ([^;]+);", 64),
    ],
}


def bound(path, pattern):
    """A bound as the source sets it; None if it is not found there any more."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", path)) as source:
        found = re.search(pattern, source.read())
    if not found or not re.fullmatch(r"[\d\s<_]+", found.group(1)):
        return None
    number, _, shift = found.group(1).replace("_", "").partition("<<")
    return int(number) << int(shift or 0)


def budget(kind):
    """(words, sum in bytes or None)."""
    parts = []
    total = 0
    for what, path, pattern, times in BUDGETS[kind]:
        value = bound(path, pattern)
        total = None if value is None or total is None else total + times * value
        parts.append("%s %s" % ("?" if value is None else "%.0f" % (times * value / MIB), what))
    return ", ".join(parts), total


def note(path, when, processes):
    notes = []
    if os.path.exists(path):
        with open(path) as source:
            notes = json.load(source)
    for name, pid in (process.split("=") for process in processes):
        try:
            notes.append({"name": name, "when": when, **daemons.status(int(pid))})
        except (OSError, ValueError):  # It is gone, or the peer has no such process.
            continue
    with open(path, "w") as sink:
        json.dump(notes, sink)


def largest(notes, name, when, key):
    return max((each[key] for each in notes if each["name"] == name and each["when"] == when and key in each), default=None)


def mib(value):
    return "-" if value is None else "%.0f" % (value / MIB)


def table(files):
    lines = []
    for label, path in (pair.split("=", 1) for pair in files):
        with open(path) as source:
            notes = json.load(source)
        for name in dict.fromkeys(each["name"] for each in notes):
            kind = next((kind for kind, _ in KINDS if label == "gfs" and name.startswith(kind)), None)
            total = budget(kind)[1] if kind else None
            values = [largest(notes, name, *column) for column in (("start", "VmRSS"), ("end", "VmHWM"), ("end", "VmRSS"), ("end", "RssAnon"))]
            lines.append([label, name] + [mib(value) for value in values] + [mib(total)])
    head = ["system", "process", "start", "peak", "end", "of it anonymous", "buffers may hold"]
    print("## Memory\n\nResident sets in MiB: after the start, the highest until the end of the benchmark, and then; the largest of all rounds.\n")
    print("| %s |\n|%s" % (" | ".join(head), "---|" * len(head)))
    for line in lines:
        print("| %s |" % " | ".join(line))
    print("\nBounds of gfs, in MiB; they are set in the sources and cannot be configured:")
    for kind, words in KINDS:
        print("- %s: %s" % (words, budget(kind)[0]))
    print("\nBeside them come, in the master, about 100 bytes a file (`bench/names.sh`), and everywhere the program itself (about 8 MiB), tables of fixed size, and frames of up to 4 MiB for each request under way.")


if __name__ == "__main__":
    if sys.argv[1] == "note":
        note(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        table(sys.argv[2:])
