"""arq."""

import os

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from tests.bench.handler import nothing

settings = RedisSettings.from_dsn(os.environ["BENCH_REDIS_URL"])
pool = []


async def job(_context, organizationId, integrationId, date):  # noqa: ARG001  # the payload
    nothing()


async def enqueue(payload):
    if not pool:
        pool.append(await create_pool(settings))
    await pool[0].enqueue_job("job", **payload)


def work(jobs):
    Worker([func(job, keep_result=0)], redis_settings=settings, max_jobs=int(jobs), log_results=False).run()
