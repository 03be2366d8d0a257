"""What a service makes of each signal: it stops, says something, or goes on."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from itertools import islice
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT)
# The kernel's own two; what tells of a fault in this very process; SIGABRT, which is the watchdog's, and SIGQUIT, which
# is for debugging: both end the process at once, after the stack of every thread. The others end or stop nothing for
# good.
_LEFT_ALONE = {
    *(signal.SIGKILL, signal.SIGSTOP),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
    *(signal.SIGABRT, signal.SIGQUIT),
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
}
_FRAMES = 50  # of each thread's stack, the innermost

log = logging.getLogger("redisq.signals")
log.setLevel(logging.INFO)  # who sends a signal wants its answer, whatever the level of the log


def heed(stop: Callable[[], None], descriptor: int) -> None:
    """Call `stop` at SIGTERM and SIGINT, say every thread's stack at SIGUSR1, and outlive what would end the process.

    In a thread of its own: neither what the main thread waits for nor a lock that it holds is in the way. What ends the
    process at once leaves the stacks at `descriptor`. Call it in the main thread. What the application handles itself
    is left to it.
    """
    faulthandler.enable(descriptor)
    faulthandler.register(signal.SIGQUIT, descriptor, chain=True)
    heard, into = os.pipe()
    os.set_blocking(into, False)
    threading.Thread(target=_listen, args=(heard, stop), name="signals", daemon=True).start()
    signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    for number in (*STOP, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, _nothing)
    for number in signal.valid_signals() - _LEFT_ALONE:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Python writes the number into the pipe before it calls this, and only if there is something to call."""


def _listen(heard: int, stop: Callable[[], None]) -> None:
    while True:
        for number in os.read(heard, 64):
            match number:
                case signal.SIGTERM | signal.SIGINT:
                    stop()
                case signal.SIGHUP:
                    log.warning("ignores SIGHUP: changed settings count from a restart on")
                case signal.SIGUSR1:
                    _say_stacks()


def _say_stacks() -> None:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        calls = islice(traceback.walk_stack(frame), _FRAMES)
        stack = [f"{each.f_code.co_filename}:{line} {each.f_code.co_name}" for each, line in calls]
        log.info("stack of a thread, innermost first", extra={"ofThread": names.get(ident, "?"), "stack": stack})
