"""What a system does in a process and an environment of its own: `python -m tests.bench.program MODULE VERB ...`.

    one COUNT            enqueue one by one, print the seconds
    many COUNT           enqueue in bulk where the system can, print the seconds and whether it can
    latency COUNT LIMIT  enqueue a job when the one before has begun, print the seconds of each from call to handler
    work VARIANT         be one worker process

The module offers `async enqueue(payload)`, `work(variant)` and, when it can, `async enqueue_many(payloads)`.
"""

import asyncio
import json
import os
import sys
import time
from importlib import import_module

from tests.bench.handler import payload

PAUSE = 0.02  # seconds between two jobs that shall find the worker idle


async def one(system, count):
    payloads = [payload(number) for number in range(count)]
    begun = time.perf_counter()
    for each in payloads:
        await system.enqueue(each)
    return time.perf_counter() - begun


async def many(system, count):
    if not hasattr(system, "enqueue_many"):
        return await one(system, count), False
    payloads = [payload(number) for number in range(count)]
    begun = time.perf_counter()
    await system.enqueue_many(payloads)
    return time.perf_counter() - begun, True


async def latency(system, count, limit):
    """Go on for `limit` seconds at most: a worker that looks once a second needs no more to be known."""
    waits = []
    with open(os.open(os.environ["BENCH_PIPE"], os.O_RDWR)) as told:
        until = time.monotonic() + limit
        for number in range(count):
            begun = time.monotonic()
            await system.enqueue(payload(number))
            waits.append(float(told.readline().split()[1]) - begun)
            if time.monotonic() > until:
                break
            await asyncio.sleep(PAUSE)
    return waits


def main(module, verb, *arguments):
    system = import_module(module)
    if verb == "work":
        return system.work(*arguments)
    answer = asyncio.run({"one": one, "many": many, "latency": latency}[verb](system, *map(int, arguments)))
    print(json.dumps(answer))
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
