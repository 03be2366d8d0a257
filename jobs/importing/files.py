"""Reads a regular file from the disk. Refuses pipes, devices and directories."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from jobs.importing.export import Unreadable
from jobs.importing.table import MAX_BYTES


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file of at most 32 MiB. Never waits for a pipe or a device.

    Raises Unreadable.
    """
    try:
        with open(path, "rb", opener=_opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unreadable(path.name, None, "not a regular file. Give the file itself, not a pipe or a device")
            # Reads one byte more than allowed, because the file may have grown since its size was looked at.
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        name = path.name or str(path.resolve())  # "." has no name
        raise Unreadable(name, None, f"a directory. Name the files in it, like {path / '*.csv'}") from None
    except OSError as error:
        raise Unreadable(path.name, None, f"{error.strerror or error}. Look at its name and permissions") from None
    if len(content) > MAX_BYTES:
        raise Unreadable(
            path.name, None, f"larger than {MAX_BYTES // 2**20} MiB. An export of a page has some kilobytes"
        )
    return content


def _opener(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a named pipe would wait until somebody writes into it.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
