"""BullMQ's Python port."""

import asyncio
import os

from bullmq import Queue, Worker

from tests.bench.handler import nothing

connection = {"connection": os.environ["BENCH_REDIS_URL"]}
OPTIONS = {"removeOnComplete": True}
queue = []  # made at first use: it belongs to the loop it was made in


def _queue():
    if not queue:
        queue.append(Queue("bench", connection))
    return queue[0]


async def job(_job, _token):
    nothing()


async def enqueue(payload):
    await _queue().add("nothing", payload, OPTIONS)


async def enqueue_many(payloads):
    for begin in range(0, len(payloads), 1000):
        chunk = [{"name": "nothing", "data": each, "opts": OPTIONS} for each in payloads[begin : begin + 1000]]
        await _queue().addBulk(chunk)


def work(concurrency):
    async def run():
        worker = Worker("bench", job, {**connection, "concurrency": int(concurrency)})
        await asyncio.Event().wait()
        await worker.close()

    asyncio.run(run())
