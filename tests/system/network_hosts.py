"""Three hosts on one machine: network namespaces with addresses and names of their own, joined by a bridge."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

NUM_HOSTS = 3
# Each host has its own name, shared memory and /etc/hosts; then it becomes the command.
_ENTER = 'hostname "$1" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


def reason_to_skip() -> str | None:
    """Why there can be no such hosts on this machine, or None."""
    name = f"hpcasync-try-{os.getpid()}"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {error}"
    return None


class NetworkHosts:
    """A context manager; the hosts are named n0, n1 and n2.

    Attributes:
        addresses: of each host, by name.
        outside: the address of this machine that they see.
    """

    def __init__(self) -> None:
        number = os.getpid() % 10000
        network = f"10.{64 + number // 250}.{number % 250}"
        self._bridge, self._prefix = f"hpb{number}", f"hp{number}-"
        self.addresses = {f"n{index}": f"{network}.{10 + index}" for index in range(NUM_HOSTS)}
        self.outside = f"{network}.1"
        self._directory = Path(tempfile.mkdtemp(prefix="hpcasync-hosts-"))

    def __enter__(self) -> "NetworkHosts":
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.addresses.items())]
        (self._directory / "hosts").write_text("\n".join(lines) + "\n")
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
        return (*enter, "sh", name, str(self._directory / "hosts"), *command)

    def _start(self) -> None:
        self._ip("link", "add", self._bridge, "type", "bridge")
        self._ip("addr", "add", f"{self.outside}/24", "dev", self._bridge)
        self._ip("link", "set", self._bridge, "up")
        for index, (name, address) in enumerate(self.addresses.items()):
            space, link = self._prefix + name, f"{self._bridge}-{index}"
            self._ip("netns", "add", space)
            self._ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._ip("link", "set", link, "master", self._bridge, "up")
            for words in (("link", "set", "lo", "up"), ("addr", "add", f"{address}/24", "dev", "eth0")):
                self._ip("-n", space, *words)
            self._ip("-n", space, "link", "set", "eth0", "up")

    def _stop(self) -> None:
        for name in self.addresses:
            self._ip("netns", "del", self._prefix + name, check=False)
        self._ip("link", "del", self._bridge, check=False)
        (self._directory / "hosts").unlink(missing_ok=True)
        self._directory.rmdir()

    def _ip(self, *words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True)
