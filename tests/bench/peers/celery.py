"""Celery with a pool of threads in one process."""

import os

from celery import Celery

from tests.bench.handler import nothing

app = Celery("bench", broker=os.environ["BENCH_REDIS_URL"])
app.conf.update(task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=100)


@app.task(name="nothing")
def job(organizationId, integrationId, date):  # noqa: ARG001  # the payload
    nothing()


async def enqueue(payload):
    job.delay(**payload)


def work(threads):
    options = ["--pool", "threads", "--concurrency", threads, "--loglevel", "WARNING"]
    app.worker_main(["worker", *options, "--without-gossip", "--without-mingle", "--without-heartbeat"])
