"""An image of this machine's own redis-server, for where the real one cannot be pulled."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.image.engine import DockerError, docker, has_image, import_image, pack

# As in the official image: on PATH, unprotected because only the engine can reach it, data in /data.
CHANGES = (
    "ENV PATH=/usr/local/bin:/usr/bin",
    "WORKDIR /data",
    "EXPOSE 6379",
    'CMD ["redis-server", "--protected-mode", "no"]',
)


def provide(name: str, binary: str) -> None:
    """See to it that the engine has the image `name`: pulled, or else made of `binary` and its libraries."""
    if has_image(name):
        return
    try:
        docker("pull", "--quiet", name)
    except DockerError:
        _build(name, binary)


def _build(name: str, binary: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "root")
        for needed in _libraries(binary):
            _copy(needed, root / needed.relative_to("/"))
        _copy(Path(binary), root / "usr/local/bin/redis-server")
        (root / "data").mkdir()
        tar = Path(directory, "image.tar")
        pack(tar, root, ["."])
        import_image(name, tar, changes=CHANGES)


def _libraries(binary: str) -> list[Path]:
    """The shared libraries of a program, its loader among them, at the paths where it looks for them."""
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listed)]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
