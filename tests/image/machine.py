"""A container in which systemd runs as it does on a machine of its own."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.image.engine import DockerError, docker
from tests.waiting import eventually

# SYS_ADMIN and no filter on system calls: systemd makes name spaces and mounts for the units' sandboxes.
# SYS_PTRACE: PrivateUsers= together with ProtectProc=invisible, as Debian's own Redis unit has them too, needs it.
CAPABILITIES = ("--cap-add=SYS_ADMIN", "--cap-add=SYS_PTRACE")
UNCONFINED = ("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined")
# The host's control groups, of either version: systemd keeps its units in them.
MOUNTS = ("--tmpfs=/run", "--tmpfs=/run/lock", "--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup")

# The wheels are all that pip needs, so that no package index has to be reachable.
PIP = "[global]\nno-index = true\nfind-links = /wheels\n"


class Machine:
    """A booted machine, as root sees it."""

    def __init__(self, container: str) -> None:
        self._container = container

    def run(self, *command: str) -> str:
        """Run a command and return what it printed. Raises DockerError when it fails."""
        return docker("exec", self._container, *command)

    def write(self, path: str, text: str) -> None:
        """Write a file that everybody can read."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size = len(text.encode())
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
        self._unpack(packed.getvalue())

    def copy(self, source: Path, target: str) -> None:
        """Copy a source tree, without what was made in it."""

        def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
            name = Path(entry.name).name
            return None if name.startswith(".") or name in ("build", "__pycache__") else entry

        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(source, arcname=target.lstrip("/"), filter=wanted)
        self._unpack(packed.getvalue())

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit)

    def journal(self, unit: str) -> str:
        """Return everything that a unit and the service manager said about it."""
        return self.run("journalctl", "--no-pager", "--unit", unit)

    def port(self, inside: int) -> int:
        """Return the port of this host behind which a port of the machine answers."""
        return int(docker("port", self._container, f"{inside}/tcp").splitlines()[0].rpartition(":")[2])

    def is_up(self) -> bool:
        """Return whether the machine has booted and none of its units has failed."""
        try:
            return self.run("systemctl", "is-system-running") == "running"
        except DockerError:
            return False

    def reboot(self) -> None:
        """Shut down, boot, and wait until everything is up."""
        docker("restart", "--time=60", self._container)
        eventually(self.is_up, every=0.2)

    def _unpack(self, packed: bytes) -> None:
        subprocess.run(["docker", "cp", "-", f"{self._container}:/"], input=packed, check=True, capture_output=True)


@contextmanager
def booted(image: str, *, wheels: Path, ports: Sequence[int]) -> Iterator[Machine]:
    """Boot `image` with `wheels` for its pip and `ports` published on loopback; remove it in the end."""
    options = ["--detach", "--stop-signal=SIGRTMIN+3", f"--volume={wheels}:/wheels:ro"]
    published = [f"--publish=127.0.0.1::{port}" for port in ports]
    container = docker("run", *options, *published, *CAPABILITIES, *UNCONFINED, *MOUNTS, image)
    try:
        machine = Machine(container)
        eventually(machine.is_up, every=0.2)
        machine.write("/etc/pip.conf", PIP)
        yield machine
    finally:
        docker("rm", "--force", "--volumes", container)
