"""streaQ."""

import os

from streaq import Worker

from tests.bench.handler import nothing

CONCURRENCY = 100
worker = Worker(redis_url=os.environ["BENCH_REDIS_URL"], concurrency=CONCURRENCY)
connected = []


@worker.task(ttl=0)
async def job(organizationId: str, integrationId: str, date: str) -> None:  # noqa: ARG001  # the payload
    nothing()


async def _connect():
    if not connected:
        connected.append(await worker.__aenter__())  # for as long as the producer lives


async def enqueue(payload):
    await _connect()
    await job.enqueue(**payload)


async def enqueue_many(payloads):
    await _connect()
    for begin in range(0, len(payloads), 1000):
        await worker.enqueue_many([job.enqueue(**each) for each in payloads[begin : begin + 1000]])


def work(_concurrency):
    worker.run_sync()
