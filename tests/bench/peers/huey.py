"""Huey with a thread for each worker."""

import os

from huey import RedisHuey

from tests.bench.handler import nothing

queue = RedisHuey("bench", url=os.environ["BENCH_REDIS_URL"], results=False)


@queue.task()
def job(organizationId, integrationId, date):  # noqa: ARG001  # the payload
    nothing()


async def enqueue(payload):
    job(**payload)


def work(threads):
    queue.create_consumer(workers=int(threads), worker_type="thread", periodic=False).run()
