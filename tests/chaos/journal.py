"""Replays the append-only file of Redis: every write ever made, in order, those of one script as one step.

Written without a line of the queue's code, from the names of its keys and the layout of its records alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "redisq:{default}:"
NOBODY = "-"

Command = list[str]


class AppendOnlyFile:
    """Follows the file while Redis writes it, across restarts: what a crash cut off is never taken in."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offset = 0

    def read(self) -> Iterator[list[Command]]:
        """Yield each step that is whole and was not yielded before."""
        path = self._path()
        if path is None:
            return
        with path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        start = position = 0
        inside, step = False, list[Command]()
        while parsed := _parse(data, position):
            command, position = parsed
            match command[0].upper():
                case "MULTI":
                    inside = True
                case "EXEC":
                    inside = False
                case "SELECT":
                    pass
                case _:
                    step.append(command)
            if not inside:
                self._offset += position - start
                start = position
                if step:
                    yield step
                step = []

    def _path(self) -> Path | None:
        split = sorted(self._directory.glob("appendonlydir/*.incr.aof"))  # since 7.0
        whole = self._directory / "appendonly.aof"
        return split[-1] if split else whole if whole.exists() else None


def _parse(data: bytes, position: int) -> tuple[Command, int] | None:
    """Return the command at `position` and the position after it; None when it is not whole."""

    def line(start: int) -> tuple[bytes, int] | None:
        end = data.find(b"\r\n", start)
        return None if end < 0 else (data[start + 1 : end], end + 2)

    if not (head := line(position)):
        return None
    count, position = int(head[0]), head[1]
    words = []
    for _ in range(count):
        if not (size := line(position)):
            return None
        start, end = size[1], size[1] + int(size[0])
        if len(data) < end + 2:
            return None
        words.append(data[start:end].decode(errors="surrogateescape"))
        position = end + 2
    return words, position


@dataclass(frozen=True, slots=True)
class Record:
    """What Redis remembers of a job's runs."""

    token: str = NOBODY
    deliveries: int = 0
    attempts: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One job between two steps. `places` is where its id stands: one, when all is well, and none when it is gone."""

    exists: bool
    places: tuple[str, ...]
    record: Record


@dataclass(slots=True)
class Mirror:
    """The queue as the journal tells it. `before` holds what each job was that the current step has touched."""

    lists: dict[str, deque[str]] = field(default_factory=dict)
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    delayed: dict[str, str] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    before: dict[str, Job] = field(default_factory=dict)
    dropped: bool = False  # by FLUSHALL, in this step

    def replay(self, step: list[Command]) -> dict[str, Job]:
        """Apply one step; return the jobs that it touched as they were before."""
        self.before, self.dropped = {}, False
        for name, *words in step:
            getattr(self, f"_{name.lower()}")(*(word.removeprefix(PREFIX) for word in words))
        return self.before

    def job(self, id: str) -> Job:
        text = self.hashes.get("runs", {}).get(id)
        record = Record()
        if text:
            token, *counts = text.split(" ")
            record = Record(token, *map(int, counts[:3]))
        return Job(id in self.hashes.get("jobs", {}), tuple(self.places.get(id, ())), record)

    def _touch(self, id: str) -> None:
        if id not in self.before:
            self.before[id] = self.job(id)

    def _arrive(self, place: str, id: str) -> None:
        self._touch(id)
        self.places.setdefault(id, []).append(place)

    def _leave(self, place: str, id: str) -> None:
        self._touch(id)
        self.places[id].remove(place)
        if not self.places[id]:
            del self.places[id]

    # -- the commands that a queue writes, by their names; another one is an AttributeError ---------------------------

    def _flushall(self, *_options: str) -> None:
        for part in (self.lists, self.hashes, self.delayed, self.places, self.before):
            part.clear()
        self.dropped = True

    def _lpush(self, key: str, *ids: str) -> None:
        for id in ids:
            self._arrive(key, id)
            self.lists.setdefault(key, deque()).appendleft(id)

    def _rpush(self, key: str, *ids: str) -> None:
        for id in ids:
            self._arrive(key, id)
            self.lists.setdefault(key, deque()).append(id)

    def _rpop(self, key: str, count: str = "1") -> list[str]:
        line = self.lists.get(key, deque())
        ids = [line.pop() for _ in range(min(int(count), len(line)))]
        for id in ids:
            self._leave(key, id)
        return ids

    def _lpop(self, key: str, count: str = "1") -> list[str]:
        line = self.lists.get(key, deque())
        line.reverse()
        ids = self._rpop(key, count)
        line.reverse()
        return ids

    def _lrem(self, key: str, count: str, id: str) -> None:
        line = self.lists[key]
        if int(count) < 0:
            line.reverse()
        for _ in range(min(abs(int(count)) or len(line), line.count(id))):
            line.remove(id)
            self._leave(key, id)
        if int(count) < 0:
            line.reverse()

    def _lmove(self, source: str, target: str, _end: str = "RIGHT", _start: str = "LEFT", *_timeout: str) -> None:
        self._lpush(target, *self._rpop(source))

    _blmove = _rpoplpush = _brpoplpush = _lmove

    def _hset(self, key: str, *pairs: str) -> None:
        content = self.hashes.setdefault(key, {})
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            if key in ("jobs", "runs", "dead"):
                self._touch(name)
            if key == "dead" and name not in content:
                self._arrive(key, name)
            content[name] = value

    _hsetnx = _hmset = _hset

    def _hdel(self, key: str, *names: str) -> None:
        content = self.hashes.get(key, {})
        for name in names:
            if key in ("jobs", "runs", "dead"):
                self._touch(name)
            if content.pop(name, None) is not None and key == "dead":
                self._leave(key, name)

    def _hincrby(self, key: str, name: str, by: str) -> None:
        content = self.hashes.setdefault(key, {})
        content[name] = str(int(content.get(name, "0")) + int(by))

    def _zadd(self, key: str, *pairs: str) -> None:
        for score, id in zip(pairs[::2], pairs[1::2], strict=True):
            if key == "delayed":
                if id not in self.delayed:
                    self._arrive(key, id)
                self.delayed[id] = score

    def _zrem(self, key: str, *ids: str) -> None:
        for id in ids:
            if key == "delayed" and self.delayed.pop(id, None) is not None:
                self._leave(key, id)

    def _del(self, *keys: str) -> None:
        for key in keys:
            self._rpop(key, str(len(self.lists.get(key, ()))))
            self._hdel(key, *list(self.hashes.get(key, ())))

    _unlink = _del
