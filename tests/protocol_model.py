"""The protocol as a state machine that is searched whole: two workers, a reaper, and every fault at every moment.

A state is what Redis, the ledger and the workers know. A step is one atomic move of design.md, or one fault out of a
budget; the order of a list is left out, since any id of it may be next. The search is complete: it visits every state
that any interleaving can reach.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

ATTEMPTS = 2
CRASHES = 2

WEAKNESSES = (
    "no_ghost_sweep",
    "token_unchecked",
    "fence_unchecked",
    "token_by_count",
    "ack_before_commit",
    "enqueue_in_two_commands",
    "promote_in_two_commands",
    "reap_in_two_commands",
    "lists_without_entry_ignored",
    "forgotten_at_once",
    "start_without_look",
)


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """One delivery in a worker's hands."""

    id: str
    token: int
    committed: bool = False


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker run: what Redis knows of it, then what it knows itself."""

    processing: tuple[str, ...] = ()
    entry: bool = True
    on_roll: bool = True  # or in the mind of a keeper that saw its entry
    alive: bool = True
    frozen: bool = False
    held: frozenset[Run] = frozenset()
    moved: frozenset[str] = frozenset()  # by its doorbell, not yet started
    in_the_air: bool = False  # a claim that was sent before it died, which the server has not run yet

    @property
    def acts(self) -> bool:
        return self.alive and not self.frozen

    def order(self) -> tuple[object, ...]:
        flags = (self.entry, self.on_roll, self.alive, self.frozen, self.in_the_air)
        return (self.processing, flags, sorted(self.held), sorted(self.moved))


@dataclass(frozen=True, slots=True)
class Record:
    """What Redis remembers of a job's runs; token 0 is nobody's."""

    token: int = 0
    deliveries: int = 0  # counted for the weakness that makes tokens of it
    attempts: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """Everything. `half` holds ids between the two commands of a move that is not atomic."""

    ids: tuple[str, ...]
    faults: int  # that may still happen
    jobs: frozenset[str] = frozenset()
    ready: tuple[str, ...] = ()
    delayed: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    effects: frozenset[str] = frozenset()
    workers: tuple[Worker, ...] = (Worker(), Worker())
    half: tuple[tuple[str, str, int], ...] = ()  # move, id, and who makes it
    wrong: str = ""

    def record(self, id: str) -> Record:
        return self.records[self.ids.index(id)]

    def but_record(self, id: str, **changes: int) -> State:
        at = self.ids.index(id)
        changed = replace(self.records[at], **changes)
        return replace(self, records=(*self.records[:at], changed, *self.records[at + 1 :]))

    def but_worker(self, at: int, **changes: object) -> State:
        changed = replace(self.workers[at], **changes)  # type: ignore[arg-type]  # the fields of Worker
        return replace(self, workers=(*self.workers[:at], changed, *self.workers[at + 1 :]))

    def places(self, id: str) -> int:
        lists = (self.ready, self.delayed, self.dead, *(worker.processing for worker in self.workers))
        return sum(ids.count(id) for ids in lists)

    def canonical(self) -> State:
        """Return the one of this state and its mirror image that stands for both: workers differ by nothing else."""
        first, second = self.workers
        return self if self.half or first.order() <= second.order() else replace(self, workers=(second, first))

    def ended(self, id: str) -> bool:
        return id in self.dead or (id in self.effects and id not in self.jobs)


def _with(ids: tuple[str, ...], id: str) -> tuple[str, ...]:
    return tuple(sorted((*ids, id)))


def _without(ids: tuple[str, ...], id: str) -> tuple[str, ...]:
    at = ids.index(id)
    return (*ids[:at], *ids[at + 1 :])


@dataclass(frozen=True, slots=True)
class Protocol:
    """Every step out of a state. `weak` names what is left out, "" for nothing."""

    weak: str = ""

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        """Yield the moves that go on by themselves, each with its name."""
        for id in s.ids:
            if id not in s.jobs and id not in s.effects:  # the ledger puts back whatever Redis has lost
                yield f"enqueue {id}", self._enqueue(s, id)
        for id in set(s.delayed):
            yield f"promote {id}", self._promote(s, id)
        for move in s.half:
            yield (
                f"second half of {move}",
                replace(s, half=tuple(m for m in s.half if m != move), ready=_with(s.ready, move[1])),
            )
        for w, worker in enumerate(s.workers):
            yield from self._worker(s, w, worker)
            adopted = worker.processing and worker.on_roll and self.weak != "lists_without_entry_ignored"
            if not worker.acts and (worker.entry or adopted):
                yield f"reap {w}", self._reap(s, w)
            elif not worker.alive and not worker.entry and not worker.processing and not worker.in_the_air:
                yield f"start {w}", s.but_worker(w, entry=True, on_roll=True, alive=True)
            # Nothing is in the air for an hour.
            over = not worker.in_the_air or self.weak == "forgotten_at_once"
            if worker.on_roll and not worker.alive and not worker.entry and not worker.processing and over:
                yield f"forget {w}", s.but_worker(w, on_roll=False)
            if worker.frozen:
                yield f"thaw {w}", s.but_worker(w, frozen=False, entry=True, on_roll=True)

    def faults(self, s: State) -> Iterator[tuple[str, State]]:
        """Yield what the world may do."""
        if not s.faults:
            return
        s = replace(s, faults=s.faults - 1)
        if s.jobs:
            forgotten = tuple(replace(worker, processing=(), entry=False) for worker in s.workers)
            blank = tuple(Record() for _ in s.ids)
            yield (
                "flush",
                replace(s, jobs=frozenset(), ready=(), delayed=(), dead=(), records=blank, workers=forgotten, half=()),
            )
        for id in set(s.delayed):
            yield f"cancel {id}", replace(s, delayed=_without(s.delayed, id), dead=_with(s.dead, id))
        for w, worker in enumerate(s.workers):
            if worker.in_the_air and not worker.alive:
                continue
            if worker.alive:
                gone = s.but_worker(w, alive=False, frozen=False, held=frozenset(), moved=frozenset())
                # What dies with its maker stays half done.
                gone = replace(gone, half=tuple(move for move in gone.half if move[2] != w))
                yield f"kill {w}", gone
                yield f"kill {w} with a claim in the air", gone.but_worker(w, in_the_air=True)
            if worker.acts:
                yield f"freeze {w}", s.but_worker(w, frozen=True)
                for id in set(s.ready):
                    yield f"claim {id} {w}, reply lost", self._claim(s, w, id)[0]
                    yield f"doorbell {id} {w}, reply lost", self._move(s, w, id)
                for run in worker.held:
                    if run.committed:
                        yield f"ack {run} {w}, reply lost", self._ack(s, w, run)
                    else:
                        yield f"fail {run} {w}, reply lost", self._fail(s, w, run)

    # -- one worker ----------------------------------------------------------------------------------------------------

    def _worker(self, s: State, w: int, worker: Worker) -> Iterator[tuple[str, State]]:
        if worker.in_the_air and not worker.alive:
            for id in set(s.ready):
                yield f"late claim {id} {w}", self._move(s, w, id).but_worker(w, in_the_air=False)
            yield f"late claim of nothing {w}", s.but_worker(w, in_the_air=False)
        if not worker.acts:
            return
        if not worker.entry:
            yield f"heartbeat {w}", s.but_worker(w, entry=True)
            return
        for id in set(s.ready):
            claimed, token = self._claim(s, w, id)
            yield f"claim {id} {w}", claimed.but_worker(w, held=worker.held | {Run(id, token)})
            yield f"doorbell {id} {w}", self._move(s, w, id).but_worker(w, moved=worker.moved | {id})
        for id in worker.moved:
            yield f"start {id} {w}", self._start(s, w, id)
        for run in worker.held:
            yield from self._settle(s, w, run)
        known = {run.id for run in worker.held} | worker.moved
        if self.weak != "no_ghost_sweep":
            for id in set(worker.processing) - known:
                ghost = s.but_worker(w, processing=_without(worker.processing, id)).but_record(id, token=0)
                yield f"sweep {id} {w}", replace(ghost, ready=_with(ghost.ready, id))

    def _settle(self, s: State, w: int, run: Run) -> Iterator[tuple[str, State]]:
        held = s.workers[w].held
        if not run.committed:
            done = held - {run} | {replace(run, committed=True)}
            yield f"commit {run} {w}", replace(s.but_worker(w, held=done), effects=s.effects | {run.id})
            yield f"fail {run} {w}", self._fail(s, w, run).but_worker(w, held=held - {run})
        if run.committed or self.weak == "ack_before_commit":
            yield f"ack {run} {w}", self._ack(s, w, run).but_worker(w, held=held - {run})

    # -- the moves -----------------------------------------------------------------------------------------------------

    def _enqueue(self, s: State, id: str) -> State:
        s = replace(s, jobs=s.jobs | {id})
        if self.weak == "enqueue_in_two_commands":
            return replace(s, half=(*s.half, ("enqueue", id, 0)))
        return replace(s, ready=_with(s.ready, id))

    def _promote(self, s: State, id: str) -> State:
        s = replace(s, delayed=_without(s.delayed, id))
        if self.weak == "promote_in_two_commands":
            return replace(s, half=(*s.half, ("promote", id, 0)))
        return replace(s, ready=_with(s.ready, id))

    def _move(self, s: State, w: int, id: str) -> State:
        s = replace(s, ready=_without(s.ready, id))
        return s.but_worker(w, processing=_with(s.workers[w].processing, id))

    def _claim(self, s: State, w: int, id: str) -> tuple[State, int]:
        return self._issue(self._move(s, w, id), id)

    def _start(self, s: State, w: int, id: str) -> State:
        worker = s.workers[w]
        s = s.but_worker(w, moved=worker.moved - {id})
        if id not in worker.processing:  # it was reaped since
            if self.weak != "start_without_look":
                return s
            s = s.but_worker(w, processing=_with(worker.processing, id))
        s, token = self._issue(s, id)
        return s.but_worker(w, held=worker.held | {Run(id, token)})

    def _issue(self, s: State, id: str) -> tuple[State, int]:
        if self.weak == "token_by_count":
            token = s.record(id).deliveries + 1
            return s.but_record(id, token=token, deliveries=token), token
        # Random tokens never meet again; here one that nobody knows any more stands for all such.
        known = {record.token for record in s.records} | {run.token for worker in s.workers for run in worker.held}
        token = next(number for number in count(1) if number not in known)
        return s.but_record(id, token=token), token

    def _leave(self, s: State, w: int, run: Run) -> State | None:
        """Take the run's id out of processing; None for a zombie."""
        mine = s.workers[w].processing
        if s.record(run.id).token != run.token and self.weak not in ("token_unchecked", "fence_unchecked"):
            return None
        if run.id not in mine and self.weak != "fence_unchecked":
            return None
        if run.id in mine:
            s = s.but_worker(w, processing=_without(mine, run.id))
        return s.but_record(run.id, token=0)

    def _ack(self, s: State, w: int, run: Run) -> State:
        after = self._leave(s, w, run)
        if after is None:
            return s
        wrong = after.wrong
        if run.id not in s.effects:
            wrong = f"{run.id} was acked without its effect"
        holders = [other for worker in s.workers for other in worker.held if other.id == run.id]
        if any(other.token == s.record(run.id).token and other != run for other in holders):
            wrong = f"{run.id} was acked by a zombie"
        return replace(after, jobs=after.jobs - {run.id}, wrong=wrong).but_record(
            run.id, deliveries=0, attempts=0, crashes=0
        )

    def _fail(self, s: State, w: int, run: Run) -> State:
        after = self._leave(s, w, run)
        if after is None:
            return s
        attempts = min(ATTEMPTS, after.record(run.id).attempts + 1)
        after = after.but_record(run.id, attempts=attempts)
        if attempts < ATTEMPTS:
            return replace(after, delayed=_with(after.delayed, run.id))
        return replace(after, dead=_with(after.dead, run.id))

    def _reap(self, s: State, w: int) -> State:
        worker = s.workers[w]
        s = s.but_worker(w, processing=(), entry=False)
        for id in worker.processing:
            crashes = min(CRASHES, s.record(id).crashes + 1)
            s = s.but_record(id, token=0, crashes=crashes)
            if crashes >= CRASHES:
                s = replace(s, dead=_with(s.dead, id))
            elif self.weak == "reap_in_two_commands":
                s = replace(s, half=(*s.half, ("reap", id, 1 - w)))
            else:
                s = replace(s, ready=_with(s.ready, id))
        return s


def broken(s: State) -> str:
    """Return which promise does not hold in this state, "" when all do."""
    if s.wrong:
        return s.wrong
    for id in s.ids:
        if s.places(id) != (id in s.jobs):
            return f"{id} is in {s.places(id)} places, and {'' if id in s.jobs else 'not '}in jobs"
    return ""


@dataclass(slots=True)
class Search:
    """All states that can be reached, and the first violation with the way to it."""

    states: int = 0
    violation: str = ""
    way: list[str] = field(default_factory=list)


def search(ids: tuple[str, ...], faults: int, weak: str = "") -> Search:
    """Visit every state, nearest first; stop at a violation."""
    protocol = Protocol(weak)
    start = State(ids, faults, records=tuple(Record() for _ in ids))
    origin: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        moves = [(name, to) for name, to in protocol.steps(state) if to != state]
        trouble = broken(state)
        if not trouble and not moves and not all(state.ended(id) for id in ids):
            trouble = "something is stuck: nothing can move, and not every job has ended"
        if trouble:
            return Search(len(origin), trouble, _way(origin, state))
        for name, to in [*moves, *protocol.faults(state)]:
            to = to.canonical()
            if to not in origin:
                origin[to] = (state, name)
                queue.append(to)
    return Search(len(origin))


def _way(origin: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    names = []
    while step := origin[state]:
        state, name = step
        names.append(name)
    return names[::-1]
