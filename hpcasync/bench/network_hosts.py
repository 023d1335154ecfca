"""Hosts on one machine: network namespaces with addresses and names of their own, joined by links of a known speed.

For measuring transport between hosts, and for tests. Needs Linux, root, and iproute2.
"""

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from hpcasync.errors import UserError
from hpcasync.launch.mpirun import Flavour
from hpcasync.launch.process import JOB_VARIABLE

# Each host has its own name, shared memory and /etc/hosts; then it becomes the command.
_ENTER = 'hostname "$1" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
# What mpirun takes for ssh: AGENT [OPTIONS] HOST COMMAND… (a line for a shell, as with ssh). The mark by which `launch`
# finds the processes of its own host does not pass through ssh.
_AGENT = """#!/bin/sh
while case $1 in -*) true ;; *) false ;; esac; do shift; done
host=$1
shift
unset {mark}
exec nsenter --net=/run/netns/{prefix}"$host" unshare --uts --mount sh -c '{enter}' sh "$host" {names} /bin/sh -c "$*"
"""
# Bytes that may leave at once, and how long others may wait: a link that drops nothing that TCP sends.
_SHAPING = ("burst", "256kb", "latency", "50ms")


def reason_to_skip() -> str | None:
    """Why there can be no such hosts on this machine, or None."""
    name = f"hpcasync-try-{os.getpid()}"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here (they need root and iproute2): {error}"
    return None


class NetworkHosts:
    """A context manager; the hosts are named n0, n1, ….

    Args:
        rate: of every host's link in each direction, as `tc` writes it ("1gbit"); default: as fast as it goes.

    Attributes:
        addresses: of each host, by name.
        outside: the address of this machine that they see.
        agent: a program that mpirun can use in the place of ssh.
    """

    def __init__(self, num_hosts: int = 3, rate: str | None = None) -> None:
        number = random.SystemRandom().randrange(10000)  # several may be there at a time
        network = f"10.{64 + number // 250}.{number % 250}"
        self._bridge, self._prefix, self._rate = f"hpb{number}", f"hp{number}-", rate
        self.addresses = {f"n{index}": f"{network}.{10 + index}" for index in range(num_hosts)}
        self.outside = f"{network}.1"
        self._directory = Path(tempfile.mkdtemp(prefix="hpcasync-hosts-"))
        self._names = self._directory / "hosts"
        self.agent = self._directory / "agent"

    def __enter__(self) -> "NetworkHosts":
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.addresses.items())]
        self._names.write_text("\n".join(lines) + "\n")
        self.agent.write_text(_AGENT.format(prefix=self._prefix, enter=_ENTER, names=self._names, mark=JOB_VARIABLE))
        self.agent.chmod(0o755)
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def on(self, index: int, command: Sequence[str]) -> tuple[str, ...]:
        """The command that runs another one on a host."""
        name = list(self.addresses)[index]
        enter = ("nsenter", f"--net=/run/netns/{self._prefix}{name}", "unshare", "--uts", "--mount", "sh", "-c", _ENTER)
        return (*enter, "sh", name, str(self._names), *command)

    def mpirun_options(self, flavour: Flavour, num_ranks: int) -> tuple[str, ...]:
        """What mpirun, started on host 0, needs to spread so many ranks evenly over the hosts."""
        most = -(-num_ranks // len(self.addresses))
        starts = range(0, num_ranks, most)
        slots = [f"{name}:{min(most, num_ranks - start)}" for name, start in zip(self.addresses, starts, strict=False)]
        hosts = ",".join(slots)
        if flavour == "openmpi":
            # Without UCX's hardware its component only prints an error.
            return ("--prtemca", "plm_ssh_agent", str(self.agent), "--host", hosts, "--mca", "osc", "^ucx")
        start = ("-launcher", "ssh", "-launcher-exec", str(self.agent), "-hosts", hosts, "-iface", "eth0")
        # UCX would find that the hosts are one machine, and use its memory.
        return (*start, "-genv", "UCX_TLS", "tcp,self", "-genv", "UCX_NET_DEVICES", "eth0")

    def disconnect(self, name: str) -> None:
        """From now on nothing that a host sends arrives, nor what is sent to it."""
        _run("ip", "link", "set", self._link(name), "down")

    def connect(self, name: str) -> None:
        _run("ip", "link", "set", self._link(name), "up")

    def _link(self, name: str) -> str:
        return f"{self._bridge}-{list(self.addresses).index(name)}"

    def _start(self) -> None:
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.outside}/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")
        for name, address in self.addresses.items():
            space, link = self._prefix + name, self._link(name)
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", link, "master", self._bridge, "up")
            for words in (("link", "set", "lo", "up"), ("addr", "add", f"{address}/24", "dev", "eth0")):
                _run("ip", "-n", space, *words)
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            if self._rate is not None:
                shape = ("root", "tbf", "rate", self._rate, *_SHAPING)
                _run("tc", "qdisc", "add", "dev", link, *shape)
                _run("tc", "-n", space, "qdisc", "add", "dev", "eth0", *shape)

    def _stop(self) -> None:
        for name in self.addresses:
            _run("ip", "netns", "del", self._prefix + name, check=False)
        _run("ip", "link", "del", self._bridge, check=False)
        for path in (self._names, self.agent):
            path.unlink(missing_ok=True)
        self._directory.rmdir()


@contextmanager
def linked_hosts(link: str) -> Iterator[NetworkHosts]:
    """Two hosts that a link of this speed joins."""
    bytes_per_second(link)
    if reason := reason_to_skip():
        raise UserError(f"--link makes two hosts on this machine: {reason}")
    with NetworkHosts(2, link) as hosts:
        yield hosts


def bytes_per_second(rate: str) -> float:
    """The speed of a link from tc's way of writing it: "1gbit", "500mbit"."""
    units = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
    number, unit = rate[:-4], rate[-4:].lower()
    try:
        bits = float(number) * units[unit]
    except (ValueError, KeyError):
        bits = 0.0
    if bits <= 0:
        raise UserError(f"{rate!r} is no speed of a link: write a number with kbit, mbit or gbit, for example 1gbit")
    return bits / 8


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True)
