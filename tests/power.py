"""A disk whose power can be cut: what Redis had not synced is gone then, which no kill of a process shows."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.servers import RedisServer, private_redis, redis_program


class Disk:
    """Holds one Redis, which is started with a library that notes what it syncs."""

    def __init__(self, directory: Path, *, slow_ms: int = 0) -> None:
        """Skip the test where no compiler is there to make the library with."""
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler, with which the library is made that notes what Redis syncs")
        self._notes, self._directory = directory / "notes", directory
        library, self._program = directory / "power.so", directory / "redis-server"
        source = str(Path(__file__).with_name("power.c"))
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), source], check=True)
        preload = f'LD_PRELOAD="{library}" POWER_NOTES="{self._notes}" POWER_SLOW_MS={slow_ms}'
        self._program.write_text(f'#!/bin/sh\n{preload} exec "{redis_program()}" "$@"\n')
        self._program.chmod(0o755)

    def start_redis(self, appendfsync: str) -> RedisServer:
        options = ["--appendfsync", appendfsync, "--auto-aof-rewrite-percentage", "0"]
        return private_redis(self._directory / "redis", options=options, binary=str(self._program))

    def syncs(self) -> int:
        """Return how many syncs have ended."""
        return self._lines().count("end")

    def syncing(self) -> bool:
        """Return whether a sync has begun that has not ended: Redis then keeps acknowledged writes in memory."""
        words = self._lines()
        return words.count("begin") > words.count("end")

    def cut_power(self, server: RedisServer) -> int:
        """End the server, and with it what it had not synced; return how many bytes that were."""
        server.kill()
        safe: dict[int, int] = {}
        for line in self._notes.read_text().splitlines():
            word, inode, size = line.split()
            if word == "end":
                safe[int(inode)] = int(size)
        lost = 0
        for path in server.directory.rglob("*"):
            if path.is_file() and "aof" in path.name:
                found = path.stat()
                kept = min(found.st_size, safe.get(found.st_ino, 0))
                os.truncate(path, kept)
                lost += found.st_size - kept
        return lost

    def _lines(self) -> list[str]:
        return [line.partition(" ")[0] for line in self._notes.read_text().splitlines()]
