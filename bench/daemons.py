"""Daemons and mounts of a cluster that a script starts by itself, on hosts of their own if asked: network namespaces on one bridge.

Everything is noted in the work folder before it is there, so that `sweep` of lib.sh ends what this leaves when it is killed.
"""
import os
import select
import signal
import socket
import subprocess
import sys
import time

READY = 120.0  # seconds until a daemon must be ready; a master of ten million files reads its checkpoint for a while


def exit_on_signals():
    """SIGTERM and SIGINT end the program in order, so that `finally` is reached."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(143))


def status(pid):
    """/proc/PID/status in bytes: the peak (VmHWM) and present (VmRSS) resident set, and what of it is anonymous."""
    found = {}
    with open("/proc/%d/status" % pid) as source:
        for line in source:
            name, _, value = line.partition(":")
            if name in ("VmHWM", "VmRSS", "RssAnon"):
                found[name] = int(value.split()[0]) * 1024
    return found


def cpu(pid):
    """Seconds of processor that a process has used."""
    with open("/proc/%d/stat" % pid) as source:
        words = source.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def free_ports(count):
    """Ports of this machine that nobody uses now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


class Network:
    """Hosts with addresses 10.78.0.N, N from 1, a network namespace each; a bridge in one more joins them."""

    def __init__(self, work, hosts):
        self.notes = os.path.join(work, "namespaces")
        self.prefix = "gfs-bench-%d-" % os.getpid()
        os.makedirs(self.notes, exist_ok=True)
        self._add("bridge", "link set lo up\nlink add wire type bridge\nlink set wire up\n")
        for number in range(1, hosts + 1):
            links = "link set lo up\nlink add wire type veth peer name port%d netns %sbridge\n" % (number, self.prefix)
            self._add("%d" % number, links + "addr add %s/24 dev wire\nlink set wire up\n" % self.address(number))
            self._batch("bridge", "link set port%d master wire\nlink set port%d up\n" % (number, number))

    def _add(self, name, links):
        open(os.path.join(self.notes, self.prefix + name), "w").close()
        subprocess.run(["ip", "netns", "add", self.prefix + name], check=True)
        self._batch(name, links)

    def _batch(self, name, lines):
        subprocess.run(["ip", "-n", self.prefix + name, "-batch", "-"], input=lines.encode(), check=True)

    def address(self, number):
        return "10.78.0.%d" % number

    def inside(self, number):
        """What to put before a command that runs on a host. `ip netns exec` would give it mounts of its own."""
        return ["nsenter", "--net=/run/netns/%s%d" % (self.prefix, number), "--"]

    def close(self):
        for name in os.listdir(self.notes):
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
            os.unlink(os.path.join(self.notes, name))


class Cluster:
    """Processes that run until `close`."""

    def __init__(self, programs, work, network=None):
        self.programs, self.work, self.network = programs, work, network
        self.running = {}
        self.mounted = {}
        for folder in ("pids", "mounts", "logs"):
            os.makedirs(os.path.join(work, folder), exist_ok=True)

    def start(self, name, program, words, host=None, settings=None):
        """Starts a daemon and waits until it says READY; answers its process id and the seconds that it took."""
        inside = self.network.inside(host) if host else []
        begun = time.monotonic()
        with open(os.path.join(self.work, "logs", name), "a") as log:
            # A group of its own: Ctrl-C reaches this script, which ends them in their order.
            process = subprocess.Popen(
                inside + [os.path.join(self.programs, program)] + words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=log, env={**os.environ, **(settings or {})}, start_new_session=True)
        self.running[name] = process
        open(os.path.join(self.work, "pids", str(process.pid)), "w").close()
        readable, _, _ = select.select([process.stdout], [], [], READY)
        line = process.stdout.readline() if readable else b""
        if not line.startswith(b"READY"):
            with open(os.path.join(self.work, "logs", name)) as log:
                raise SystemExit("%s does not start: %s" % (name, log.read()[-400:]))
        return process.pid, time.monotonic() - begun

    def mount(self, name, masters, host=None):
        at = os.path.join(self.work, name)
        os.makedirs(at, exist_ok=True)
        with open(os.path.join(self.work, "mounts", name), "w") as note:
            note.write(at)
        self.mounted[name] = at
        return at, self.start(name, "gfs-fuse", ["-f", masters, at], host)[0]

    def unmount(self, name):
        at = self.mounted.pop(name)
        if subprocess.run(["fusermount3", "-u", "-q", at], check=False).returncode:
            subprocess.run(["fusermount3", "-uz", "-q", at], check=False)
        self.stop(name)

    def stop(self, name, how=signal.SIGTERM):
        process = self.running.pop(name)
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()
        os.unlink(os.path.join(self.work, "pids", str(process.pid)))

    def close(self):
        for name in list(self.mounted):
            self.unmount(name)
        # The newest first: chunk servers have something to tell the master.
        for name in reversed(list(self.running)):
            self.stop(name)
