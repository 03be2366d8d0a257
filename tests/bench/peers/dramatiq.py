"""Dramatiq: of its middleware only what retries a failed job; its command line, one process."""

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries

from tests.bench.handler import nothing

broker = RedisBroker(url=os.environ["BENCH_REDIS_URL"], middleware=[Retries()])
dramatiq.set_broker(broker)


@dramatiq.actor
def job(organizationId, integrationId, date):  # noqa: ARG001  # the payload
    nothing()


async def enqueue(payload):
    job.send(**payload)


def work(threads):
    os.environ["dramatiq_queue_prefetch"] = "1000"  # noqa: SIM112  # its name
    command = ["-m", "dramatiq", "--processes", "1", "--threads", threads, "--skip-logging", f"{__name__}:broker"]
    os.execv(sys.executable, [sys.executable, *command])
