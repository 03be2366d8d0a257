"""Wall clocks that a test steps: of a Redis, or of any other process."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from jobs.servers import RedisServer, redis_program


class Clock:
    """A wall clock apart from the machine's: a library that is preloaded reads an offset from a file.

    It holds for the processes that are started with its `environment`, and for a Redis that is started as its
    `program`. Their monotonic clocks are left alone. Without a C compiler both are empty, and no step happens.
    """

    def __init__(self, directory: Path) -> None:
        self._offset_ms = 0
        self._page: mmap.mmap | None = None
        self.environment: dict[str, str] = {}
        self.program: str | None = None  # a redis-server
        compiler = shutil.which("cc")
        if compiler is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        library, offset, program = (directory / name for name in ("clock.so", "clock.offset", "redis-server"))
        source = str(Path(__file__).with_name("clock.c"))
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), source], check=True)
        offset.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "TEST_CLOCK": str(offset)}
        program.write_text(f'#!/bin/sh\nLD_PRELOAD="{library}" TEST_CLOCK="{offset}" exec "{redis_program()}" "$@"\n')
        program.chmod(0o755)
        self.program = str(program)
        with offset.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8)

    def step(self, seconds: float) -> bool:
        """Move the clock; False when there is no compiler to make the library with."""
        if self._page is None:
            return False
        self._offset_ms += round(seconds * 1000)
        self._page[:8] = struct.pack("=q", self._offset_ms)
        return True


def redis_with_a_clock(directory: Path) -> tuple[RedisServer, Clock]:
    """Start a Redis whose wall clock the test steps. Raise `ServerError` when it does not start."""
    clock = Clock(directory)
    assert clock.program, "no C compiler: the clock of Redis cannot be stepped"
    server = RedisServer(directory / "redis", clock.program, ())
    server.start()
    return server, clock
