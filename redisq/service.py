"""A worker or a scheduler as a service: signals, sd_notify, logs, and waiting for Redis."""

import argparse
import faulthandler
import gc
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from redis.exceptions import RedisError

from redisq.config import Settings
from redisq.cron import Schedule
from redisq.errors import RedisqError, UnfitServer
from redisq.fitness import Fitness
from redisq.job import Registry
from redisq.keys import check_name
from redisq.logs import TurnHandler, log_json
from redisq.outlet import Outlet, Printed, hold_standard_streams
from redisq.queue import Queue
from redisq.redaction import redact
from redisq.scheduler import Clockwork, Keeper, Presence, Scheduler
from redisq.schedules import check_schedules, oddities, schedules_in_force
from redisq.server import connect, describe, require_fit
from redisq.signals import heed
from redisq.worker import Worker

# Seconds until the same is told again, the watchdog too: a busy loop turns thousands of times in it.
SAY = 1.0
LEAVE = 15.0  # seconds after the grace in which a service has ended, whatever holds it up
FLUSH = 1.0  # seconds that the reader of the log gets at the end
FILES, FILES_OF_A_SLOT = 32, 4  # open files and connections: of a worker, and of each slot with its stores and provider

log = logging.getLogger("redisq.service")


class Notifier:
    """Tells systemd what the process does: one datagram a message (sd_notify(3)); without systemd it does nothing.

    Nobody waits for a systemd that does not read: what it missed is said again with the next `progress` or `status`.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval = int(environ.get("WATCHDOG_USEC", "0")) / 2e6
        self._fed = 0.0
        self._status = ""
        self._owed: list[str] = []  # what is said once, and was not heard yet
        self._is_heard = True

    def ready(self) -> None:
        """Say that the service does its work from now on."""
        self._owe("READY=1")

    def stopping(self) -> None:
        """Say that the service has begun to stop."""
        self._owe("STOPPING=1")

    def status(self, text: str) -> None:
        """Show `text` in `systemctl status`."""
        if text != self._status and self._send(f"STATUS={text}"):
            self._status = text

    def progress(self) -> None:
        """Feed the watchdog. Called by the loop whose progress is the service's life, and by nothing else."""
        self._pay()
        now = time.monotonic()
        if self._interval and now - self._fed >= self._interval / 2 and self._send("WATCHDOG=1"):
            self._fed = now

    def _owe(self, message: str) -> None:
        self._owed.append(message)
        self._pay()

    def _pay(self) -> None:
        while self._owed and self._send(self._owed[0]):
            del self._owed[0]

    def _send(self, message: str) -> bool:
        """Return whether it was heard, or there is nobody to hear it."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
                link.setblocking(False)
                link.connect(self._address)
                link.sendall(message.encode())
        except OSError as error:
            if self._is_heard:
                log.warning("systemd does not listen", extra={"cause": describe(error)})
            self._is_heard = False
        else:
            self._is_heard = True
        return self._is_heard


def _begin() -> Outlet:
    """Take care of the standard streams before anything else is opened; return the outlet for the log.

    What is printed past the log waits for its reader as little as the log does.
    """
    hold_standard_streams()
    outlet = Outlet(2)
    sys.stdout, sys.stderr = Printed(Outlet(1), logging.INFO), Printed(outlet, logging.ERROR)
    return outlet


def _stop_within(seconds: float, outlet: Outlet) -> None:
    """End the process after `seconds`, whatever holds it up; what that is, its last lines tell."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=outlet.fileno())


def _check_open_files(settings: Settings) -> None:
    needed = FILES + FILES_OF_A_SLOT * settings.slots
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < needed:
        log.warning(
            f"may run out of files and connections: {settings.slots} slots need {needed}, the limit is {limit}: set "
            f"LimitNOFILE={needed} in the unit, or ulimit -n {needed}"
        )


def _wait_for_redis(
    prepare: Callable[[], None], notifier: Notifier, settings: Settings, stopping: threading.Event
) -> bool:
    """Repeat `prepare` until Redis answers; False when told to stop before that."""
    said, wait = "", 0.1
    while not stopping.is_set():
        try:
            prepare()
        except (RedisError, UnfitServer) as error:
            cause = describe(error)
            if cause != said:
                log.warning("waiting for redis", extra={"address": settings.redis_address, "cause": cause})
                notifier.status(f"waiting for redis at {settings.redis_address}: {redact(cause, 200)}")
                said = cause
        else:
            return True
        notifier.progress()
        stopping.wait(wait)
        wait = min(2.0, wait * 2)
    return False


def _require_all_fit(queues: Sequence[Queue]) -> None:
    for client in {id(queue.redis): queue.redis for queue in queues}.values():
        require_fit(client)


class _Told:
    """Tells systemd and the log what the worker's claim loop does."""

    def __init__(self, notifier: Notifier, log: TurnHandler, queue: str, healthy: Callable[[], bool]) -> None:
        self._notifier, self._log, self._queue, self._healthy = notifier, log, queue, healthy
        self._stopping = False
        self._seen: tuple[bool, bool, str] | None = None
        self._said_at = 0.0

    def turned(self, *, running: int, slots: int, draining: bool, connected: bool, paused: str) -> None:
        self._log.flush()
        seen, now = (draining, connected, paused), time.monotonic()
        if seen == self._seen and now - self._said_at < SAY:
            return
        self._seen, self._said_at = seen, now
        if draining and not self._stopping:
            self._stopping = True
            self._notifier.stopping()
        state = "draining" if draining else "waiting for redis" if not connected else "working"
        if paused and state == "working":
            state = f"paused, {redact(paused, 200)}"
        self._notifier.status(f"{state}: {running} of {slots} slots of queue {self._queue} run a job")
        if self._healthy():
            self._notifier.progress()


def collect_seldom() -> None:
    """Have garbage collected as a worker does, whose handlers are loaded. Call it before the first job."""
    gc.freeze()  # modules and handlers stay as they are: the collector need not walk over them again and again
    gc.set_threshold(10_000)  # a turn of many slots makes thousands of objects and leaves none


def worker_main(
    registry: Registry, argv: Sequence[str] | None = None, *, before: Callable[[], object] = lambda: None
) -> int:
    """Run one worker until a signal; return the exit code: 0 drained, 1 must be restarted, 2 bad settings.

    `before` is called before the first job and may raise `RedisqError`: a setting of the application cannot be used.
    """
    outlet = _begin()
    try:
        return _work(registry, argv, before, outlet)
    finally:
        outlet.drain(FLUSH)


def _work(registry: Registry, argv: Sequence[str] | None, before: Callable[[], object], outlet: Outlet) -> int:
    parser = argparse.ArgumentParser(description="Run one worker. Settings come from the environment; see the README.")
    parser.add_argument("--queue", default="default", help="QUEUE, or QUEUE:N for the Nth worker of a queue")
    queue_name = parser.parse_args(argv).queue.partition(":")[0]
    try:
        check_name(queue_name, "queue")
        settings = Settings.from_environment()
        client = connect(settings)
        before()
    except RedisqError as error:
        print(f"worker: {error}", file=sys.stderr)  # noqa: T201  # there is no log yet
        return 2
    lines = log_json(settings.log_level, outlet)
    notifier = Notifier()
    told = _Told(notifier, lines, queue_name, lambda: worker.healthy() and keeping.is_alive())
    worker = Worker(queue_name, registry, settings, lambda timeout: connect(settings, timeout=timeout), told)
    queue = Queue(client, queue_name, settings.prefix)
    fitness = Fitness([queue.redis])
    keeper = Scheduler([Keeper(queue, settings.lease)], outage=worker.outage, others=[fitness.look])
    keeping = threading.Thread(target=keeper.run, name="keeper", daemon=True)
    stopping = threading.Event()

    def stop() -> None:
        _stop_within(LEAVE if stopping.is_set() else settings.grace + LEAVE, outlet)
        stopping.set()
        worker.stop()

    heed(stop, outlet.fileno())
    _check_open_files(settings)
    if not _wait_for_redis(worker.prepare, notifier, settings, stopping):
        return 0
    collect_seldom()
    keeping.start()
    notifier.ready()
    code = worker.run()
    keeper.stop()
    return code


def scheduler_main(registry: Registry, own: Sequence[Schedule], argv: Sequence[str] | None = None) -> int:
    """Run one scheduler until a signal; return the exit code: 0 stopped, 2 bad settings.

    `own` are the application's own schedules; the file that `REDISQ_SCHEDULES` names replaces them.
    """
    outlet = _begin()
    try:
        return _schedule(registry, own, argv, outlet)
    finally:
        outlet.drain(FLUSH)


def _schedule(registry: Registry, own: Sequence[Schedule], argv: Sequence[str] | None, outlet: Outlet) -> int:
    argparse.ArgumentParser(description="Run one scheduler. Settings come from the environment.").parse_args(argv)
    try:
        settings = Settings.from_environment()
        client = connect(settings)
        schedules = schedules_in_force(settings.schedules, own)
        check_schedules(settings.schedules, schedules, registry)
    except RedisqError as error:
        print(f"scheduler: {error}", file=sys.stderr)  # noqa: T201  # there is no log yet
        return 2
    lines = log_json(settings.log_level, outlet)
    notifier = Notifier()
    queues = [Queue(client, name, settings.prefix) for name in registry.queues]
    presence = Presence(queues, settings.lease)
    scheduler = Scheduler(
        [Keeper(queue, settings.lease) for queue in queues],
        Clockwork(queues, schedules, registry),
        others=[presence.beat, Fitness(queue.redis for queue in queues).look],
    )
    stopping = threading.Event()
    scheduling = threading.Thread(target=scheduler.run, name="scheduler", daemon=True)

    def stop() -> None:
        _stop_within(LEAVE, outlet)
        stopping.set()

    heed(stop, outlet.fileno())

    def prepare() -> None:
        _require_all_fit(queues)
        presence.beat()

    if not _wait_for_redis(prepare, notifier, settings, stopping):
        return 0
    for oddity in oddities(schedules, own):
        log.warning("odd schedules", extra={"file": settings.schedules, "detail": oddity})
    log.info("scheduler started", extra={"queues": list(registry.queues), "schedules": len(schedules)})
    scheduling.start()
    notifier.ready()
    while not stopping.wait(0.5) and scheduling.is_alive():
        lines.flush()
        notifier.status(f"{'keeping' if scheduler.connected else 'waiting for redis, for'} {len(queues)} queues")
        if time.monotonic() - scheduler.ticked < 10:  # its slowest honest tick: a few timeouts of a frozen Redis
            notifier.progress()
    notifier.stopping()
    scheduler.stop()
    scheduling.join(timeout=10)
    if not stopping.is_set():
        return 1
    try:
        presence.end()
    except RedisError as error:
        log.warning("scheduler left without signing off", extra={"cause": describe(error)})
    else:
        log.info("scheduler stopped")
    return 0
