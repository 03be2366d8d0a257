"""Whether anybody looks after the queues: what people are told of workers, schedulers and slots that are overdue."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from redisq.cron import Schedule
from redisq.durations import age
from redisq.job import JSON
from redisq.queue import DeadLetter, Queue, RunEntry
from redisq.server import Finding
from redisq.units import Units

OVERDUE = 60.0  # seconds after a slot that has not fired: a scheduler looks every five


@dataclass(frozen=True, slots=True)
class Seen:
    """The run of a worker or a scheduler, as its last heartbeat shows it."""

    entry: RunEntry
    silent: float  # seconds since that heartbeat
    lapsed: bool  # silent for more than its lease, and so taken for gone

    @property
    def paused(self) -> str:
        """Why it claims nothing; "" when it does, or is a scheduler."""
        return str(self.entry.info.get("paused") or "")


@dataclass(frozen=True, slots=True)
class Sight:
    """Who looks after the queues at one moment."""

    now: float  # seconds, Redis TIME
    workers: Mapping[str, Sequence[Seen]]  # by queue
    schedulers: Sequence[Seen]
    slots: Mapping[str, int]  # the slot of each schedule that was looked at last, in ms
    fired: Mapping[str, int]  # the last slot of each schedule that put its job in, or found it there, in ms

    def is_served(self, queue: str) -> bool:
        """Tell whether a worker of `queue` lives."""
        return any(not worker.lapsed for worker in self.workers[queue])


def look(queues: Sequence[Queue], first: Queue, lease: float) -> Sight:
    """Return who looks after `queues`. Schedulers are registered with `first`. Raise `redis.RedisError`.

    A run has lapsed when it was silent for its own lease and for `lease`: the longer one, as a reaper has it.
    """
    return Sight(
        first.now(),
        {queue.name: _seen(queue.workers(), queue.now(), lease) for queue in queues},
        _seen(first.schedulers(), first.now(), lease),
        {name: slot for queue in queues for name, slot in queue.last_slots().items()},
        {name: slot for queue in queues for name, slot in queue.fired_slots().items()},
    )


def _seen(entries: Sequence[RunEntry], now: float, lease: float) -> list[Seen]:
    silences = [max(0.0, now - float(entry.beat or 0) / 1000) for entry in entries]
    return [
        Seen(entry, silent, silent > max(entry.lease, lease)) for entry, silent in zip(entries, silences, strict=True)
    ]


def inspect_runs(sight: Sight, needed: Collection[str], units: Units) -> list[Finding]:
    """Return a finding for each queue of `needed` without a worker, each worker that lapsed or pauses, each scheduler.

    Each names the command that mends it, where the application has units.
    """
    findings = [each for queue in sight.workers for each in _of_queue(sight, queue, queue in needed, units)]
    return findings + _of_schedulers(sight, needed, units)


def _of_queue(sight: Sight, queue: str, is_needed: bool, units: Units) -> list[Finding]:
    workers, restart = sight.workers[queue], units.restart_worker(queue)
    if is_needed and not sight.is_served(queue):
        return [Finding("failed", "workers", f"no worker serves queue {queue}{_since(workers)}{restart}")]
    findings = []
    for worker in workers:
        name = f"{worker.entry.id} of queue {queue}"
        if worker.lapsed:
            text = f"{name} was last heard of {age(worker.silent)} ago{restart}"
            findings.append(Finding("failed", "workers", text))
        elif worker.paused:
            text = f"{name} claims nothing: {worker.paused}{units.mend_pause(worker.paused)}"
            findings.append(Finding("failed", "workers", text))
    return findings or [Finding("ok", "workers", f"{len(workers)} of queue {queue}")]


def _of_schedulers(sight: Sight, needed: Collection[str], units: Units) -> list[Finding]:
    living = [each for each in sight.schedulers if not each.lapsed]
    restart = units.restart_scheduler()
    if not living:
        return [Finding("failed", "scheduler", f"no scheduler runs{_since(sight.schedulers)}{restart}")]
    kept = {name for each in living for name in str(each.entry.info.get("queues")).split()}
    return [
        Finding("failed", "scheduler", f"no scheduler looks after queue {queue}{restart}")
        for queue in sight.workers
        if queue in needed and queue not in kept
    ] or [Finding("ok", "scheduler", f"{len(living)} of all queues")]


def _since(runs: Sequence[Seen]) -> str:
    return f", the last was heard of {age(min(each.silent for each in runs))} ago" if runs else ""


def inspect_slots(sight: Sight, queues: Sequence[Queue], schedules: Sequence[Schedule], units: Units) -> list[Finding]:
    """Return a finding for each schedule that puts no job in.

    Either a slot should have fired `OVERDUE` seconds ago, and did not, or its job lies dead on one of `queues`. Raise
    `redis.RedisError`.
    """
    findings = []
    for schedule in schedules:
        last = sight.slots.get(schedule.name)
        if last is not None and last > sight.fired.get(schedule.name, 0):
            findings += _in_the_way(schedule, datetime.fromtimestamp(last / 1000, UTC), queues)
        slot = None if last is None else next(schedule.slots_after(datetime.fromtimestamp(last / 1000, UTC)), None)
        late = 0.0 if slot is None else sight.now - slot.timestamp()
        if slot is not None and late > OVERDUE:
            when = f"{slot.astimezone(UTC):%Y-%m-%d %H:%M} UTC, {age(late)} ago"
            text = f"{schedule.name} has not fired its slot of {when}{units.restart_scheduler()}"
            findings.append(Finding("failed", "slots", text))
    return findings


def _in_the_way(schedule: Schedule, slot: datetime, queues: Sequence[Queue]) -> list[Finding]:
    """Return a finding if the job of a slot that did not fire lies dead, so that it cannot be put in again."""
    payload = schedule.payload_of(slot)
    letters = [letter for queue in queues for letter in queue.dead_letters_of(schedule.kind)]
    return [_not_put_in(schedule, slot, letter) for letter in letters if _is_of(letter, payload)][:1]


def _is_of(letter: DeadLetter, payload: JSON) -> bool:
    # A kind may have added what the schedule leaves out. What cannot be read may be any job of its kind.
    return letter.job is None or payload.items() <= letter.job.payload.items()


def _not_put_in(schedule: Schedule, slot: datetime, letter: DeadLetter) -> Finding:
    mend = "requeue" if letter.job else "remove"
    text = f"{schedule.name} put no job in at its slot of {slot:%Y-%m-%d %H:%M} UTC: {letter.id} lies dead"
    then = f"redisq dlq show {letter.id}, then redisq dlq {mend} {letter.id}"
    return Finding("failed", "slots", f"{text}: {then}")
