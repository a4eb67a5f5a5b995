"""What the scripts here share: work in several processes at a time, cold caches, and pieces of work that are timed.

Only what is in the standard library. The work itself is done by system calls on a mounted directory, as programs do it.
"""
import json
import mmap
import os
import random
import signal
import time

MIB = 1 << 20
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
BLOCK = random.Random(42).randbytes(MIB)


def drop_caches(what=3):
    """Empties the page cache (1), names and inodes (2) or both (3) of this machine, after everything is written."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as sink:
        sink.write(str(what))


def _child(work, number, ready, go, answer):
    code = 1
    try:
        os.write(ready, b"r")
        os.read(go, 1)  # Ends when the parent closes its side: all begin at once.
        try:
            done = work(number)
            said = {"done": done, "end": time.monotonic()}
        except OSError as error:
            said = {"error": str(error)}
        os.write(answer, json.dumps(said).encode())
        code = 0
    finally:
        os._exit(code)


def together(count, work):
    """Runs work(number) in `count` processes that begin at once: (the sum of what they did, seconds until the last was done)."""
    ready, ready_side = os.pipe()
    go, go_side = os.pipe()
    children = []
    for number in range(count):
        answer, answer_side = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go_side)
            _child(work, number, ready_side, go, answer_side)
        os.close(answer_side)
        children.append((child, answer))
    try:
        for _ in children:
            os.read(ready, 1)
        begun = time.monotonic()
        os.close(go_side)
        answers = []
        for child, answer in children:
            with os.fdopen(answer, "rb") as source:
                answers.append(json.loads(source.read() or b'{"error": "the worker died"}'))
    except BaseException:
        # Whoever is interrupted wants to unmount what they work on.
        for child, _ in children:
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        for child, _ in children:
            os.waitpid(child, 0)
        for end in (ready, ready_side, go):
            os.close(end)
    errors = [answer["error"] for answer in answers if "error" in answer]
    if errors:
        raise OSError(errors[0])
    return sum(answer["done"] for answer in answers), max(answer["end"] for answer in answers) - begun


def write_file(path, size, sync=True):
    """Writes a file in pieces of 1 MiB and syncs it; answers the bytes."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for _ in range(0, size, MIB):
            os.write(target, BLOCK)
        if sync:
            os.fsync(target)
    finally:
        os.close(target)
    return size


def read_file(path):
    """Reads a file in pieces of 1 MiB; answers the bytes."""
    source = os.open(path, os.O_RDONLY)
    piece = mmap.mmap(-1, MIB)
    done = 0
    try:
        while count := os.readv(source, [piece]):
            done += count
    finally:
        os.close(source)
    return done


def small_file(path):
    """Makes a file of 4 KiB."""
    target = os.open(path, CREATE, 0o644)
    try:
        os.write(target, BLOCK[:4096])
    finally:
        os.close(target)


def empty_file(path):
    """Makes an empty file."""
    os.close(os.open(path, CREATE, 0o644))


def each(calls, limit):
    """Makes calls, one after the other, until all are made or `limit` seconds are over; answers how many."""
    end = time.monotonic() + limit
    done = 0
    for call in calls:
        call()
        done += 1
        if time.monotonic() > end:
            break
    return done
