"""The job of every system but the one on Node: it does nothing but count, and tells when it is asked to.

It runs in the environments of the peers, so it knows the standard library only. What it tells goes into the pipe
`BENCH_PIPE`, a line of "count, monotonic time, process" that no other line can cut.
"""

import itertools
import os
import time

PAYLOAD_BYTES = 75

_pipe = os.open(os.environ["BENCH_PIPE"], os.O_WRONLY) if "BENCH_TELL" in os.environ else -1
_tell = frozenset(map(int, os.environ.get("BENCH_TELL", "").split(",") if _pipe >= 0 else ()))  # 0 is every one
_hold = float(os.environ.get("BENCH_HOLD", 0))
_tally = os.environ.get("BENCH_TALLY")  # a file to count in, where each job has a process of its own
_counted = itertools.count(1).__next__


def payload(number: int) -> dict[str, str]:
    """Return a payload of `PAYLOAD_BYTES` bytes as compact JSON, one to a number."""
    return {"organizationId": "org1", "integrationId": f"page-{number:06}", "date": "2026-01-01"}


def nothing() -> None:
    """Be one job."""
    count = _count()
    if count in _tell or 0 in _tell:
        tell(count)
    if _hold:
        time.sleep(_hold)


def _count() -> int:
    if not _tally:
        return _counted()
    file = os.open(_tally, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b".")
    size = os.fstat(file).st_size
    os.close(file)
    return size


def tell(count: int) -> None:
    """Say when job number `count` began."""
    os.write(_pipe, f"{count} {time.monotonic()!r} {os.getpid()}\n".encode())
