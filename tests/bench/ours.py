"""redisq as an application uses it: one kind, the two services of `redisq.service`, settings as they come."""

import os
from dataclasses import dataclass

from redisq import Delivery, Kind, Queue, Registry, Settings, connect
from redisq.service import scheduler_main, worker_main
from tests.bench.handler import nothing

settings = Settings(redis_url=os.environ["BENCH_REDIS_URL"])
queue = Queue(connect(settings, timeout=60), "default")


@dataclass(frozen=True, slots=True)
class Page:
    """The payload."""

    organizationId: str
    integrationId: str
    date: str


def handler(_page: Page, _delivery: Delivery) -> None:
    nothing()


kind = Kind(name="nothing", payload=Page, handler=handler, key=lambda page: page.integrationId)
registry = Registry([kind], log_fields=("organizationId", "integrationId", "date"))


async def enqueue(payload):
    queue.enqueue(kind.job(Page(**payload)))


async def enqueue_many(payloads):
    queue.enqueue_many([kind.job(Page(**payload)) for payload in payloads])


def work(slots):
    if slots == "scheduler":
        os.environ |= {"REDISQ_REDIS_URL": settings.redis_url, "REDISQ_LOG_LEVEL": "WARNING"}
        return scheduler_main(registry, [], [])
    os.environ |= {"REDISQ_REDIS_URL": settings.redis_url, "REDISQ_SLOTS": slots}
    os.environ.setdefault("REDISQ_LOG_LEVEL", "WARNING")
    return worker_main(registry, [])
