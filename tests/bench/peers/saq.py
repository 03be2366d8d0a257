"""SAQ."""

import asyncio
import os

from saq import Job, Queue, Worker

from tests.bench.handler import nothing

queue = Queue.from_url(os.environ["BENCH_REDIS_URL"])


async def job(_context, *, organizationId, integrationId, date):  # noqa: ARG001  # the payload
    nothing()


async def enqueue(payload):
    await queue.enqueue(Job("job", kwargs=payload, ttl=-1, retries=3))


def work(concurrency):
    asyncio.run(Worker(queue, [job], concurrency=int(concurrency)).start())
