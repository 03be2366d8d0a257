"""Every signal that reaches a service: it stops, says something, or goes on; only a fault or a debugger ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

from redisq import Queue
from redisq.signals import STOP
from tests.harness import Crew, Process, Stage, job
from tests.waiting import eventually

# What signal(7) has as "Term" and as "Core", real-time signals too; without the kernel's own and what stops a service.
DEADLY = [
    *("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT"),
    *("SIGXCPU", "SIGXFSZ", "SIGRTMIN", "SIGRTMAX"),
]


def messages(process: Process) -> list[str]:
    return [line["message"] for line in process.lines()]


def test_no_signal_that_is_sent_by_mistake_costs_a_job_its_run(redis_url: str, queue: Queue, stage: Stage) -> None:
    """A terminal that is closed, a log rotation, a profiler: three such crashes would bury what a worker runs."""
    with Crew(stage, redis_url, slots=2) as crew:
        [worker] = crew.workers(1)
        queue.enqueue(job("wait", 1))
        eventually(lambda: stage.runs() == ["wait:1"])
        for name in DEADLY:
            worker.signal(getattr(signal, name))
        queue.enqueue(job("effect", 1))
        eventually(lambda: queue.where(["effect:1"]) == [None])
        assert worker.lives()
        stage.open_gate("1")
        eventually(lambda: queue.where(["wait:1"]) == [None])
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert stage.runs().count("wait:1") == 1
    assert [text for text in messages(worker) if "SIGHUP" in text] == [
        "ignores SIGHUP: changed settings count from a restart on"
    ]


def test_a_scheduler_outlives_them_too(redis_url: str, queue: Queue, stage: Stage) -> None:
    """It holds no job, but a slot would fire late."""
    with Crew(stage, redis_url) as crew:
        scheduler = crew.scheduler()
        eventually(lambda: "scheduler started" in scheduler.text())
        for name in DEADLY:
            scheduler.signal(getattr(signal, name))
        queue.enqueue(job("effect", 1), delay=0.5)
        eventually(lambda: queue.where(["effect:1"]) == ["ready"])
        eventually(lambda: "stack of a thread" in scheduler.text())
        scheduler.signal(signal.SIGTERM)
        assert scheduler.wait() == 0
    assert [text for text in messages(scheduler) if "SIGHUP" in text]


@pytest.mark.parametrize("level", ["INFO", "ERROR"])
def test_sigusr1_tells_what_every_thread_does_and_the_worker_goes_on(
    redis_url: str, queue: Queue, stage: Stage, level: str
) -> None:
    """The first question to a worker that seems to hang, and none that should end it."""
    with Crew(stage, redis_url, slots=2, log_level=level) as crew:
        worker = crew.worker()
        queue.enqueue(job("wait", 1))
        eventually(lambda: stage.runs() == ["wait:1"])
        worker.signal(signal.SIGUSR1)
        eventually(lambda: {"MainThread", "pulse", "doorbell", "keeper"} <= threads(worker))
        stacks = [line["stack"] for line in worker.said("stack of a thread, innermost first")]
        assert any(" wait" in call and "harness.py:" in call for stack in stacks for call in stack)
        stage.open_gate("1")
        eventually(lambda: queue.where(["wait:1"]) == [None])
        assert worker.lives()


def threads(process: Process) -> set[str]:
    return {line["ofThread"] for line in process.said("stack of a thread, innermost first")}


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGABRT])
def test_a_debuggers_signal_ends_a_worker_and_leaves_every_stack(
    redis_url: str, queue: Queue, stage: Stage, number: signal.Signals
) -> None:
    """The watchdog's, and that of an operator for whom the interpreter answers nothing any more."""
    with Crew(stage, redis_url, slots=2) as crew:
        [worker] = crew.workers(1)
        queue.enqueue(job("wait", 1))
        eventually(lambda: stage.runs() == ["wait:1"])
        worker.signal(number)
        assert worker.wait() == -number
    assert "in wait" in worker.text()


def test_sigterm_is_heeded_while_the_main_thread_waits() -> None:
    """Python runs handlers in the main thread only, between two of its instructions; a service listens elsewhere."""
    program = """
        import os, signal, threading, time
        from redisq.signals import heed
        heed(lambda: os._exit(7), 2)
        lock = threading.Lock()
        lock.acquire()
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            lock.acquire()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == 7


def test_a_handler_of_the_applications_own_stays() -> None:
    """A library may use an alarm, or a profiler its own signal."""
    program = """
        import os, signal
        from redisq.signals import heed
        signal.signal(signal.SIGUSR2, lambda *_: print("mine"))
        heed(lambda: None, 2)
        os.kill(os.getpid(), signal.SIGUSR2)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "mine\n")


def test_each_signal_is_one_of_those_that_were_thought_of() -> None:
    """A kernel or a Python with one more gets an answer here first."""
    known = {*DEADLY, *(number.name for number in STOP), "SIGKILL", "SIGSTOP", "SIGQUIT", "SIGABRT"}
    known |= {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS"}
    known |= {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
    assert {number.name for number in signal.valid_signals() if isinstance(number, signal.Signals)} <= known
