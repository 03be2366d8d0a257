"""Counts the functions of Python that a worker with one slot calls for a job: `... tests.calls_of_a_worker URL JOBS`.

So many jobs are in the queue. In a process of its own: where another thread has an exception pending and never takes
it, as a handler that never comes back has, Python 3.11 does not get a profiled thread past its first function.
"""

import sys
import threading
from types import FrameType

from redisq import Queue, Settings, connect
from tests.harness import at_work, nothings
from tests.waiting import eventually


def main(url: str, jobs: int) -> None:
    """Count from the start of the worker to the end of the last job."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    queue = Queue(connect(Settings(redis_url=url)), "default")
    threading.setprofile(count)  # of the threads that are started from now on
    with at_work(nothings(), url, slots=1, lease=15.0):
        eventually(lambda: queue.counts().get("total_done") == jobs, every=0.2)
        sys.stdout.write(f"{calls / jobs}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
