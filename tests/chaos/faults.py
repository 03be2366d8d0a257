"""The faults: which come when is drawn from a seed, and how each is made on one machine."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from redis.exceptions import RedisError

from redisq import Job, Queue, Settings
from redisq.server import connect
from tests.chaos.auditor import NAME
from tests.chaos.journal import PREFIX
from tests.chaos.load import SLOW
from tests.chaos.site import LEASE, Member, Site
from tests.proxy import Rule

GAP = 0.3  # seconds between faults, on average


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a plan: `pick` in [0, 1) chooses whom it strikes, and lesser things."""

    at: float  # seconds from the start
    name: str
    pick: float
    lasts: float


@dataclass(frozen=True, slots=True)
class Shape:
    """How often a fault is drawn, compared with the others, and how long it may last."""

    weight: float
    shortest: float = 0.0
    longest: float = 0.0


SHAPES = {
    "kill worker": Shape(1.5),
    "kill scheduler": Shape(1.0),
    "kill producer": Shape(0.7),
    "drain worker": Shape(0.7),
    "stop a process": Shape(2.5, 0.1, 0.9 * LEASE),
    "stop a worker beyond its lease": Shape(1.2, 1.3 * LEASE, 1.8 * LEASE),
    "kill connections": Shape(2.0, 0.1, 0.5),
    "cut replies": Shape(2.0),
    "cut claims": Shape(5.0),
    "swallow a reply": Shape(1.0),
    "delay": Shape(2.0, 0.05, 1.0),
    "partition": Shape(0.7, 1.0, 1.5 * LEASE),
    "kill redis": Shape(0.8, 0.0, 1.0),
    "freeze redis": Shape(0.8, 0.3, 2.5),
    "redis away beyond a lease": Shape(0.3, 1.1 * LEASE, 1.3 * LEASE),
    "fill redis": Shape(1.0, 0.3, 1.5),
    "flush redis": Shape(4.0),
    "step the clock forward": Shape(0.8),
    "step the clock back": Shape(0.5),
    "leave a log unread": Shape(1.0, LEASE, 3 * LEASE),
    "lose names": Shape(0.7, 0.3, 1.5 * LEASE),
    "terminate backends": Shape(1.5),
    "restart postgres": Shape(0.4),
}
FIRST = "flush redis under a slow job"
ALONE = 4.5  # seconds that it takes to find its moment and to do its harm, which nothing else may undo
OUTAGES = {"partition", "freeze redis", "redis away beyond a lease", "lose names"}
FORWARD = (20.0, 90.0)  # seconds of a step: over slots, and beyond every lease
BACK = (LEASE, 90.0)
LOOK = 0.1  # seconds between looks for a slow job
LOOKS = 30


def plan(seed: int, seconds: float) -> list[Fault]:
    """Return the faults of one run: the same for the same seed.

    The first one meets a crew in good health. Of the others each comes up before any comes twice.
    """
    chance = random.Random(seed)
    faults = [Fault(1.0, FIRST, chance.random(), ALONE)]
    at = 1.0 + ALONE
    names = chance.sample(list(SHAPES), len(SHAPES))
    while at < seconds:
        name = names.pop() if names else chance.choices(list(SHAPES), [shape.weight for shape in SHAPES.values()])[0]
        shape = SHAPES[name]
        faults.append(Fault(at, name, chance.random(), chance.uniform(shape.shortest, shape.longest)))
        # While Redis is away little else can be met, so the next fault waits for a part of it.
        at += chance.expovariate(1 / GAP) + (faults[-1].lasts / 2 if name in OUTAGES else 0.0)
    return faults


class Hand:
    """Strikes. What a fault begins, `later` ends; a fault whose victim is down already is passed over."""

    def __init__(self, site: Site, later: Callable[[float, Callable[[], None]], None]) -> None:
        self._site, self._later = site, later
        self._rules: list[Rule] = []  # of replies to be cut

    def strike(self, fault: Fault) -> bool:
        """Do `fault`; False when there was nothing to strike."""
        return bool(getattr(self, "_" + fault.name.replace(" ", "_"))(fault))

    # -- processes -----------------------------------------------------------------------------------------------------

    def _kill_worker(self, fault: Fault) -> bool:
        return self._kill(self._site.pick("worker", fault.pick))

    def _kill_scheduler(self, fault: Fault) -> bool:
        return self._kill(self._site.pick("scheduler", fault.pick))

    def _kill_producer(self, fault: Fault) -> bool:
        return self._kill(self._site.pick("producer", fault.pick))

    def _kill(self, member: Member) -> bool:
        return member.signal(signal.SIGKILL)

    def _drain_worker(self, fault: Fault) -> bool:
        return self._site.pick("worker", fault.pick).signal(signal.SIGTERM)

    def _stop_a_process(self, fault: Fault) -> bool:
        roles = ("worker", "worker", "scheduler", "producer")
        role = roles[int(fault.pick * len(roles))]
        return self._stop(self._site.pick(role, fault.pick * len(roles) % 1), fault.lasts)

    def _stop_a_worker_beyond_its_lease(self, fault: Fault) -> bool:
        return self._stop(self._site.pick("worker", fault.pick), fault.lasts)

    def _stop(self, member: Member, seconds: float) -> bool:
        struck = member.signal(signal.SIGSTOP)
        self._later(seconds, lambda: member.signal(signal.SIGCONT))
        return struck

    # -- the way to Redis ----------------------------------------------------------------------------------------------

    def _kill_connections(self, fault: Fault) -> bool:
        """Kill some of all connections, again and again, for as long as it lasts."""
        chance = random.Random(fault.pick)
        waits = [chance.uniform(0.005, 0.15) for _ in range(int(fault.lasts / 0.07))]
        at = 0.0
        for wait in waits:
            at += wait
            self._later(at, lambda: self._storm(chance))
        return True

    def _storm(self, chance: random.Random) -> None:
        try:
            for client in self._site.admin.client_list():
                if client["name"] != NAME and chance.random() < 0.6:
                    self._site.admin.client_kill_filter(_id=client["id"])
        except RedisError:
            return  # it is down: nobody is connected

    def _cut_replies(self, fault: Fault) -> bool:
        return self._lose(b"", times=1 + int(fault.pick * 8))

    def _cut_claims(self, fault: Fault) -> bool:
        """Only answers that carry jobs: the ones that cannot be asked for again."""
        request = b"BLMOVE" if fault.pick < 0.3 else b"EVALSHA"
        return self._lose(request, reply=b":2024-05-01", times=5 + int(fault.pick * 10))

    def _swallow_a_reply(self, _fault: Fault) -> bool:
        self._site.proxy.lose(b"EVALSHA", how="swallow")
        return True

    def _delay(self, fault: Fault) -> bool:
        return self._partition(fault)

    def _partition(self, fault: Fault) -> bool:
        self._site.proxy.partition()
        self._later(fault.lasts, self._reconnect)
        return True

    def _reconnect(self) -> None:
        """End a partition; replies that are still to be cut are still to be cut."""
        self._site.proxy.heal()
        rules, self._rules = self._rules, []
        for rule in rules:
            if rule.fired < rule.times:
                self._lose(rule.request, reply=rule.reply, times=rule.times - rule.fired)

    def _lose(self, request: bytes, *, reply: bytes = b"", times: int) -> bool:
        self._rules.append(self._site.proxy.lose(request, reply=reply, how="cut", times=times))
        return True

    # -- Redis ---------------------------------------------------------------------------------------------------------

    def _kill_redis(self, fault: Fault) -> bool:
        if self._site.redis_is_struck:
            return False
        self._site.redis_is_struck = True
        self._site.redis.kill()
        self._later(fault.lasts, self._start_redis)
        return True

    def _start_redis(self) -> None:
        self._site.redis.start()
        self._site.redis_is_struck = False

    def _freeze_redis(self, fault: Fault) -> bool:
        if self._site.redis_is_struck:
            return False
        self._site.redis_is_struck = True
        os.kill(self._site.redis.pid, signal.SIGSTOP)
        self._later(fault.lasts, self._thaw_redis)
        return True

    def _thaw_redis(self) -> None:
        os.kill(self._site.redis.pid, signal.SIGCONT)
        self._site.redis_is_struck = False

    def _redis_away_beyond_a_lease(self, fault: Fault) -> bool:
        return self._freeze_redis(fault) if fault.pick < 0.5 else self._kill_redis(fault)

    def _fill_redis(self, fault: Fault) -> bool:
        self._later(fault.lasts, lambda: self._limit_memory("0"))
        return self._limit_memory("1mb")  # less than an empty Redis uses

    def _limit_memory(self, limit: str) -> bool:
        try:
            self._site.admin.config_set("maxmemory", limit)
        except RedisError:
            return False
        return True

    def _flush_redis(self, _fault: Fault) -> bool:
        try:
            self._site.admin.flushall()
        except RedisError:
            return False
        return True

    def _flush_redis_under_a_slow_job(self, _fault: Fault) -> bool:
        """A living worker gets a job again that it still runs: only the token tells its two deliveries apart."""
        self._watch_slow_jobs(set(self._slow_jobs()), {}, LOOKS)
        return True

    def _watch_slow_jobs(self, old: set[str], seen: dict[str, int], looks: int) -> None:
        """Strike when one that began meanwhile has run for a while: its second delivery shall outlast the first."""
        running = self._slow_jobs()
        seen = {id: seen.get(id, 0) + 1 for id in running if id not in old}
        late = [id for id, times in seen.items() if times * LOOK > SLOW / 5]
        if late:
            self._flush_under(*running[late[0]])
        elif looks:
            self._later(LOOK, lambda: self._watch_slow_jobs(old, seen, looks - 1))

    def _flush_under(self, worker: Member, job: Job) -> None:
        """Flush, and put back this one alone, for the worker that runs it: the others are killed."""
        for member in self._site.members:
            if member.role == "worker" and member is not worker:
                self._kill(member)
        try:
            self._site.admin.flushall()
            Queue(connect(Settings(redis_url=self._site.redis.url)), "default").enqueue(job)
        except RedisError:
            return  # it is down or full: the producers will put it back

    def _slow_jobs(self) -> dict[str, tuple[Member, Job]]:
        """Return the slow jobs that living workers have, by their ids."""
        redis, found = self._site.admin, {}
        living = {str(member.pid): member for member in self._site.members if member.role == "worker"}
        try:
            for key in redis.keys(PREFIX + "processing:*"):
                worker = living.get(key.split(".")[-2])
                ids = [id for id in redis.lrange(key, 0, -1) if id.startswith("ingest:")] if worker else []
                for envelope in filter(None, redis.hmget(PREFIX + "jobs", ids) if ids else ()):
                    job = Job.decode(envelope.encode(), queue="default")
                    if job.payload["seconds"] == SLOW:
                        found[job.id] = worker, job
        except RedisError:
            return {}
        return found

    def _step_the_clock_forward(self, fault: Fault) -> bool:
        return self._site.clock.step(FORWARD[0] + fault.pick * (FORWARD[1] - FORWARD[0]))

    def _step_the_clock_back(self, fault: Fault) -> bool:
        return self._site.clock.step(-BACK[0] - fault.pick * (BACK[1] - BACK[0]))

    # -- the machine ---------------------------------------------------------------------------------------------------

    def _leave_a_log_unread(self, fault: Fault) -> bool:
        roles = ("worker", "worker", "scheduler")
        member = self._site.pick(roles[int(fault.pick * len(roles))], fault.pick * len(roles) % 1)
        member.read_log(go_on=False)
        self._later(fault.lasts, member.read_log)
        return True

    def _lose_names(self, fault: Fault) -> bool:
        """And every connection: those that there are need no name."""
        struck = self._site.names.lose()
        self._later(fault.lasts, self._site.names.find)
        self._site.proxy.close_all()
        self._site.terminate_backends()
        return struck

    # -- PostgreSQL ----------------------------------------------------------------------------------------------------

    def _terminate_backends(self, _fault: Fault) -> bool:
        self._site.terminate_backends()
        return True

    def _restart_postgres(self, fault: Fault) -> bool:
        if fault.pick < 0.5:
            os.kill(self._site.postgres.pid, signal.SIGQUIT)  # an immediate shutdown: it recovers like after a crash
        self._site.postgres.stop()
        self._site.postgres.start()
        return True
