"""RQ, with the worker that forks for each job and with the one that does not."""

import os

from redis import Redis
from rq import Queue, Retry, SimpleWorker, Worker

from tests.bench.handler import nothing

client = Redis.from_url(os.environ["BENCH_REDIS_URL"])
queue = Queue(connection=client)


def job(organizationId, integrationId, date):  # noqa: ARG001  # the payload
    nothing()


async def enqueue(payload):
    queue.enqueue(job, kwargs=payload, result_ttl=0, retry=Retry(max=3))


async def enqueue_many(payloads):
    for begin in range(0, len(payloads), 500):
        chunk = payloads[begin : begin + 500]
        queue.enqueue_many([Queue.prepare_data(job, kwargs=each, result_ttl=0, retry=Retry(max=3)) for each in chunk])


def work(kind):
    {"simple": SimpleWorker, "forking": Worker}[kind]([queue], connection=client).work(logging_level="WARNING")
