"""taskiq on Redis streams, through its command line."""

import os
import sys

from taskiq_redis import RedisStreamBroker

from tests.bench.handler import nothing

broker = RedisStreamBroker(os.environ["BENCH_REDIS_URL"], consumer_id="0")


@broker.task
async def job(organizationId: str, integrationId: str, date: str) -> None:  # noqa: ARG001  # the payload
    nothing()


async def enqueue(payload):
    await job.kiq(**payload)


def work(tasks):
    command = ["-m", "taskiq", "worker", f"{__name__}:broker", "--workers", "1", "--max-async-tasks", tasks]
    command += ["--max-prefetch", tasks, "--no-parse", "--log-level", "WARNING"]
    os.execv(sys.executable, [sys.executable, *command])
