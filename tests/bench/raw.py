"""Bare loops of redis-py: what is left when a queue is taken away, and the most that Redis gives."""

import json
import os

from redis import Redis

from tests.bench.handler import nothing

client = Redis.from_url(os.environ["BENCH_REDIS_URL"])


async def enqueue(payload):
    client.lpush("ready", json.dumps(payload, separators=(",", ":")))


async def enqueue_many(payloads):
    for begin in range(0, len(payloads), 500):
        client.lpush("ready", *[json.dumps(each, separators=(",", ":")) for each in payloads[begin : begin + 500]])


def work(variant):
    """Run the loop `lmove`, `blmove` or `joined-N`."""
    name, _, batch = variant.partition("-")
    {"lmove": lmove, "blmove": blmove, "joined": joined}[name](*map(int, [batch] if batch else []))


def lmove():
    while job := client.lmove("ready", "processing", "RIGHT", "LEFT"):
        json.loads(job)
        nothing()
        client.lrem("processing", -1, job)


def blmove():
    while True:
        if job := client.blmove("ready", "processing", 2, "RIGHT", "LEFT"):
            json.loads(job)
            nothing()
            client.lrem("processing", -1, job)


def joined(batch):
    """Send the acks of a batch with the claims of the next."""
    done: list[bytes] = []
    while True:
        with client.pipeline(transaction=False) as pipe:
            for job in done:
                pipe.lrem("processing", -1, job)
            for _ in range(batch):
                pipe.lmove("ready", "processing", "RIGHT", "LEFT")
            claimed = pipe.execute()[len(done) :]
        done = [job for job in claimed if job]
        for job in done:
            json.loads(job)
            nothing()
        if not done:
            return
