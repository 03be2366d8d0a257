"""What an operator sees of the queue: the core's commands, run as the real program against real Redis."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import orjson
import pytest
from redis import Redis

from jobs.commands import hooks
from jobs.program import PROGRAM
from redisq import Failure, Job, Queue
from redisq.cli import EXIT_CODES
from redisq.cli.services import adopt_settings
from tests.program import NOWHERE, Shell, attend, bury, ingest
from tests.redis_users import private_redis
from tests.system import PROGRAMS
from tests.waiting import eventually, patience

NO_DATABASE = f"postgresql://redisq:canary@{NOWHERE}/redisq"


@pytest.fixture
def shell(redis_url: str) -> Shell:
    """A shell with an empty Redis and no database."""
    return Shell({"REDISQ_REDIS_URL": redis_url, "REDISQ_DATABASE_URL": NO_DATABASE})


@pytest.fixture
def lost() -> Shell:
    """A shell whose Redis is down."""
    return Shell({"REDISQ_REDIS_URL": f"redis://me:canary@{NOWHERE}/0", "REDISQ_DATABASE_URL": NO_DATABASE})


# -- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "needed"),
    [("--help", set()), ("status", {"redis"}), ("dlq list", {"redis"}), ("schedule next daily", {"redis"})],
)
def test_command_loads_no_client_that_it_does_not_use(lost: Shell, line: str, needed: set[str]) -> None:
    """Each call and every completed word start the program anew: what they do not need they must not pay for."""
    code = (
        f"import sys; from jobs.program import PROGRAM\ntry: PROGRAM({line.split()}, 'redisq')\n"
        "except SystemExit: print(*{'redis', 'psycopg', 'rich', 'urllib3', 'cryptography.fernet'} & sys.modules.keys())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=lost.environ, capture_output=True, text=True, check=True, timeout=patience()
    )
    assert set(ran.stdout.splitlines()[-1].split()) == needed


def test_help_states_the_exit_codes() -> None:
    """A script can only rely on codes that are written down."""
    assert EXIT_CODES in " ".join(Shell().run("--help").stdout.split())


def test_every_command_shows_an_example() -> None:
    """An example is what people read first."""
    assert [path for path, text in _helps(PROGRAM, "redisq") if "Example" not in text] == []


def _helps(command: click.Command, path: str) -> list[tuple[str, str]]:
    context = click.Context(command, info_name=path, parent=click.Context(PROGRAM))
    found = [(path, command.get_help(context))]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found += _helps(child, f"{path} {name}")
    return found


@pytest.mark.parametrize(
    "line",
    ["status", "status job-1", "dlq list", "dlq requeue --all", "schedule list", "enqueue reconcile"],
)
def test_redis_that_is_down_is_one_line_without_password(lost: Shell, line: str) -> None:
    """At night the cause has to be read at a glance, and must not carry a secret into a ticket."""
    ran = lost.run(*line.split())
    last = ran.stderr.splitlines()[-1]
    assert (ran.returncode, ran.stdout) == (69, "")
    assert last.startswith(f"redisq: cannot reach redis at redis://me@{NOWHERE}/0: ")
    assert "canary" not in ran.stderr
    assert "Traceback" not in ran.stderr


def test_bad_setting_is_named(shell: Shell) -> None:
    """A setting that cannot be used is a mistake in an environment file, which the operator must find."""
    ran = Shell({**shell.environ, "REDISQ_LEASE": "soon"}).run("status")
    assert (ran.returncode, ran.stderr) == (2, "redisq: REDISQ_LEASE is 'soon', which is not a number\n")


def test_reader_that_goes_away_is_no_error_message(redis: Redis, shell: Shell) -> None:
    """`redisq dlq list | head -1` must not end in a traceback."""
    bury(redis, *(ingest(f"fb-{i}") for i in range(40)))
    process = shell.start("dlq", "list", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=patience())
    assert b"Error" not in stderr
    assert b"Traceback" not in stderr


def test_ctrl_c_ends_quietly(shell: Shell, tmp_path: Path) -> None:
    """Whoever interrupts a command knows that they did."""
    fifo, key = tmp_path / "token", tmp_path / "key"
    os.mkfifo(fifo)
    key.write_text(Shell().run("integration", "new-key").stdout)
    told = Shell({**shell.environ, "REDISQ_TOKEN_KEY_FILE": str(key)})
    # A test run in the background of a shell is told to ignore it, and so would the command be.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = told.start("integration", "reconnect", "fb-1", "--token-file", str(fifo), stdout=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    writer = eventually(lambda: _open_writer(fifo))  # there is one as soon as the command reads
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=patience())
    os.close(writer)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")


def _open_writer(fifo: Path) -> int | None:
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


# -- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shell_name", "separator"), [("bash", ","), ("zsh", "\n")])
def test_completion_offers_commands_and_queues(shell_name: str, separator: str) -> None:
    """The protocol that the generated scripts of both shells speak."""

    def completed(words: str, position: int) -> str:
        protocol = {"_REDISQ_COMPLETE": f"{shell_name}_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        return Shell(protocol).run().stdout

    assert f"plain{separator}dlq" in completed("redisq dl", 1)
    assert f"plain{separator}requeue" in completed("redisq dlq req", 2)
    assert f"plain{separator}backfill" in completed("redisq status --queue b", 3)
    assert f"plain{separator}ingest" in completed("redisq enqueue ing", 2)


def test_completion_script_works_in_bash() -> None:
    """The script itself, as `eval` would load it from ~/.bashrc."""
    script = 'eval "$(redisq completion bash)"; COMP_WORDS=(redisq dlq req); COMP_CWORD=2; _redisq_completion redisq;'
    ran = subprocess.run(
        ["bash", "-c", script + ' echo "${COMPREPLY[@]}"'],
        env=Shell().all(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "requeue\n"


def test_completion_script_for_zsh_names_the_program() -> None:
    """zsh reads `#compdef` to learn what the script completes."""
    assert "#compdef redisq" in Shell().run("completion", "zsh").stdout


# -- enqueue ---------------------------------------------------------------------------------------------------------


def test_enqueue_puts_a_job_in_once(redis: Redis, shell: Shell) -> None:
    """A second one would be a second call of the provider; the operator is told where the first one is."""
    line = ["enqueue", "plan", "--date", "2026-03-08"]
    first, second = shell.run(*line), shell.run(*line)
    assert (first.returncode, first.stdout) == (0, "plan:2026-03-08\n")
    assert second.returncode == 4
    assert "plan:2026-03-08 exists on queue default: it is ready" in second.stderr
    explained = Queue(redis, "default").explain("plan:2026-03-08")
    assert explained is not None
    assert explained.job is not None
    assert explained.job.payload == {"date": "2026-03-08"}


def test_enqueue_says_when_too_few_replicas_have_the_job(redis: Redis, shell: Shell) -> None:
    """A new job or one that was there: who asks for two copies must hear of one."""
    line = ["enqueue", "plan", "--date", "2026-03-08", "--wait", "1"]
    for state in ("new", "ready"):
        ran = shell.run(*line, "--json")
        assert ran.returncode == 6
        assert json.loads(ran.stdout)["state"] == state
        assert json.loads(ran.stdout)["replicas"] == 0
        assert "plan:2026-03-08 is enqueued, but only 0 of 1 replicas have it: a failover may lose it" in ran.stderr
    assert Queue(redis, "default").counts()["ready"] == 1


@pytest.mark.parametrize("kind", [("ingest", "--integration", "fb-1"), ("aggregate",)], ids=lambda kind: kind[0])
def test_enqueue_puts_nothing_in_that_the_ledger_cannot_be_told(
    kind: tuple[str, ...], redis: Redis, shell: Shell
) -> None:
    """After a wiped Redis nobody would know that it was ever asked for."""
    ran = shell.run("enqueue", *kind, "--org", "acme", "--date", "2026-03-08")
    assert (ran.returncode, ran.stdout) == (69, "")
    assert f"cannot reach postgresql at {NOWHERE}/redisq" in ran.stderr
    assert "canary" not in ran.stderr
    assert redis.dbsize() == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("ingest --org acme --integration fb-1 --date 2026-02-30", "'2026-02-30' is not a day of the calendar"),
        ("ingest --org acme --integration fb-1 --date 20260308", "is not written YYYY-MM-DD"),
        ("ingest --org ac/me --integration fb-1 --date 2026-03-08", "organizationId 'ac/me' is not"),
        ("ingest --org acme --integration fb-\x1b1 --date 2026-03-08", "integrationId 'fb-\\x1b1' is not"),
        ("plan --date 2999-01-01", "2999-01-01 has not begun anywhere on earth"),
        ("aggregate --org acme", "Missing option '--date'"),
        ("reconcile --queue a/b", "'a/b' is not one of 'default', 'backfill'"),
        ("reconcile --queue nightly", "'nightly' is not one of 'default', 'backfill'"),
        ("nonsense", "No such command 'nonsense'"),
    ],
)
def test_bad_value_fails_at_the_command_line(redis: Redis, shell: Shell, line: str, sentence: str) -> None:
    """A bad organization, date or queue is found where it was typed, never in a worker, or by nobody at all."""
    ran = shell.run("enqueue", *line.split())
    assert ran.returncode == 2
    assert sentence in ran.stderr
    assert "Traceback" not in ran.stderr
    assert redis.dbsize() == 0


# -- dead letters ----------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_by_page(redis: Redis, shell: Shell) -> None:
    """Fifty thousand letters must not scroll by, and none may be out of reach: pages go on into the next queue."""
    bury(redis, ingest("fb-1"), ingest("fb-2"), ingest("fb-3", queue="backfill"))
    first = shell.run("dlq", "list", "--limit", "2")
    ids = [line.split()[0] for line in first.stdout.splitlines()]
    assert ids == ["ID", "ingest:fb-2:2026-03-08", "ingest:fb-1:2026-03-08"]
    assert "1 to 2 of 3; next: redisq dlq list --limit 2 --offset 2" in first.stderr
    second = shell.json("dlq", "list", "--limit", "2", "--offset", "2")
    assert (second["total"], [letter["id"] for letter in second["deadLetters"]]) == (3, ["ingest:fb-3:2026-03-08"])


def test_dead_letter_list_can_be_one_queue(redis: Redis, shell: Shell) -> None:
    """A backfill may fail in masses while the daily run is what matters."""
    bury(redis, ingest("fb-1"), ingest("fb-2", queue="backfill"))
    found = shell.json("dlq", "list", "--queue", "backfill")["deadLetters"]
    assert [(letter["id"], letter["queue"], letter["class"], letter["reason"]) for letter in found] == [
        ("ingest:fb-2:2026-03-08", "backfill", "permanent", "token_expired")
    ]


def _put_by_hand(redis: Redis, *ids: str) -> None:
    """Put dead letters in as somebody does who does not know of the index."""
    for id in ids:
        redis.hset(Queue(redis, "default").keys.dead, id, b"\xff\xfe")


def test_a_dead_letter_that_the_index_lacks_is_listed_after_the_others(redis: Redis, shell: Shell) -> None:
    """The count and the list agree, so that the pages end, and nobody takes 1970 for its time."""
    bury(redis, ingest("fb-1"), ingest("fb-2"))
    _put_by_hand(redis, "ingest:x:2026-11-18", "ingest:a:2026-11-18")
    whole = shell.json("dlq", "list")
    assert [(each["id"], each["at"] is None) for each in whole["deadLetters"]] == [
        ("ingest:fb-2:2026-03-08", False),
        ("ingest:fb-1:2026-03-08", False),
        ("ingest:a:2026-11-18", True),
        ("ingest:x:2026-11-18", True),
    ]
    paged = [shell.json("dlq", "list", "--limit", "1", "--offset", str(n))["deadLetters"] for n in range(5)]
    assert [each["id"] for page in paged for each in page] == [each["id"] for each in whole["deadLetters"]]
    shown = shell.run("dlq", "list")
    assert [line.split()[-1] == "-" for line in shown.stdout.splitlines()[1:]] == [False, False, True, True]
    assert shown.stderr == ""
    for line in (["status", "ingest:x:2026-11-18"], ["dlq", "show", "ingest:x:2026-11-18"]):
        assert "1970" not in shell.run(*line).stdout
    oldest = shell.json("status")["queues"][0]["oldestDead"]
    assert oldest == whole["deadLetters"][1]["at"]
    assert "2 of queue default cannot be read, such as ingest:a:2026-11-18" in shell.run("doctor").stdout


def test_all_dead_letters_are_those_that_the_index_lacks_too(
    redis: Redis, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `--all` leaves behind, no command would ever find again."""
    bury(redis, ingest("fb-1"))
    _put_by_hand(redis, *(f"by-hand:{n}" for n in range(600)))
    redis.hset(Queue(redis, "default").keys.jobs, "by-hand:599", Job("by-hand:599", "x", {}).encode())
    found = shell.json("dlq", "requeue", "--all")
    assert (found["requeued"], len(found["notRunnable"])) == (2, 599)
    monkeypatch.setattr(hooks, "abandon", lambda letters: None)  # noqa: ARG005
    assert shell.run_here("dlq", "remove", "--all", "--yes").output == "removed 599\n"
    assert Queue(redis, "default").counts()["dead"] == 0


def test_dead_letter_is_shown_whole(redis: Redis, shell: Shell) -> None:
    """The reason is found here or nowhere: the verdict, the payload, and the error of each attempt."""
    queue, job = Queue(redis, "default"), ingest()
    queue.enqueue(job)
    for failure in (Failure("transient", "server", "first"), Failure("transient", "network", "second")):
        [[claimed]] = queue.send([queue.claim("worker-1", 1)])
        queue.send([queue.fail("worker-1", claimed, failure, attempts=2, delay=0)])
        queue.promote()
    shown, whole = shell.run("dlq", "show", job.id), shell.json("dlq", "show", job.id)
    for text in (job.id, "transient", '"integrationId":"fb-1"', "server first", "network second", "worker-1"):
        assert text in shown.stdout
    assert (whole["class"], whole["reason"], whole["detail"]) == ("transient", "network", "second")
    assert (whole["payload"], whole["kind"]) == (job.payload, "ingest")
    assert [(error["attempt"], error["reason"]) for error in whole["errors"]] == [(1, "server"), (2, "network")]


def test_requeue_answers_for_each_id(redis: Redis, shell: Shell) -> None:
    """A script that requeues must see whether all, some or none of it happened."""
    bury(redis, ingest("fb-1"), ingest("fb-2"))
    assert shell.run("dlq", "requeue", "ingest:fb-1:2026-03-08").returncode == 0
    partial = shell.run("dlq", "requeue", "ingest:fb-1:2026-03-08", "ingest:fb-2:2026-03-08")
    assert (partial.returncode, "no dead letter ingest:fb-1:2026-03-08" in partial.stderr) == (6, True)
    assert shell.run("dlq", "requeue", "ingest:fb-2:2026-03-08").returncode == 5
    counts = Queue(redis, "default").counts()
    assert (counts["ready"], counts["dead"]) == (2, 0)


def test_a_letter_that_is_gone_meanwhile_is_not_found(
    redis: Redis, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever named it must not read a success that was somebody else's; `--all` means whatever there is."""
    bury(redis, ingest("fb-1"), ingest("fb-2"))
    monkeypatch.setattr(
        hooks, "abandon", lambda letters: Queue(redis, "default").remove([letter.id for letter in letters])
    )
    named = shell.run_here("dlq", "remove", ingest("fb-1").id)
    assert (named.exit_code, "no dead letter ingest:fb-1:2026-03-08" in named.output) == (5, True)
    assert shell.run_here("dlq", "remove", "--all", "--yes").exit_code == 0


@pytest.mark.parametrize("command", [["requeue"], ["remove", "--yes"]])
def test_a_filter_that_fits_no_letter_finds_nothing(command: list[str], redis: Redis, shell: Shell) -> None:
    """A mistyped reason must not look like success; "every one" is done when there is none."""
    bury(redis, Job("plan:2026-03-08", "plan", {"date": "2026-03-08"}), reason="server")
    ran = shell.run("dlq", *command, "--all", "--class", "permanent", "--reason", "sever")
    assert (ran.returncode, ran.stderr) == (5, "redisq: no dead letter of class permanent and reason sever\n")
    assert Queue(redis, "default").counts()["dead"] == 1
    assert [shell.run("dlq", *command, "--all").returncode for _ in range(2)] == [0, 0]


def test_requeue_all_takes_those_of_a_reason(redis: Redis, shell: Shell) -> None:
    """After a cause is mended exactly its victims run again, on every queue and beyond one page."""
    mended = [ingest(f"fb-{i}", queue=queue) for i in range(600) for queue in ("default", "backfill")]
    bury(redis, ingest("other"), reason="permission")
    for job in mended:
        _lay_down(redis, job, "token_expired")
    answer = shell.json("dlq", "requeue", "--all", "--reason", "token_expired")
    assert answer == {"requeued": 1200, "notFound": [], "notRunnable": [], "live": []}
    assert [letter.id for letter in Queue(redis, "default").dead_letters()] == ["ingest:other:2026-03-08"]


def _lay_down(redis: Redis, job: Job, reason: str, at_ms: float = 1) -> None:
    keys = Queue(redis, job.queue).keys
    redis.hset(keys.jobs, job.id, job.encode())
    redis.hset(keys.dead, job.id, Failure("permanent", reason).record())
    redis.zadd(keys.dead_index, {job.id: at_ms})


def test_all_are_those_that_were_dead_at_the_start(redis: Redis, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those from before the clock was set back, whose time is still to come; what comes meanwhile nobody meant."""
    queue = Queue(redis, "default")
    _lay_down(redis, ingest("old"), "server")
    _lay_down(redis, ingest("ahead"), "server", at_ms=(queue.now() + 3600) * 1000)

    def told(_jobs: object) -> None:
        asked = queue.now()
        eventually(lambda: queue.now() >= asked + 0.001)  # a letter has its time in milliseconds
        bury(redis, ingest("late"))

    monkeypatch.setattr(hooks, "abandon", told)
    ran = shell.run_here("dlq", "remove", "--all", "--yes")
    assert (ran.exit_code, ran.output) == (0, "removed 2\n")
    assert [letter.id for letter in queue.dead_letters()] == [ingest("late").id]


def test_letter_without_a_job_is_reported_not_lost(redis: Redis, shell: Shell) -> None:
    """Where the job itself is gone there is nothing to run: the letter stays, and the operator is told."""
    bury(redis, ingest())
    redis.hdel(Queue(redis, "default").keys.jobs, ingest().id)
    ran = shell.run("dlq", "requeue", "--all")
    assert (ran.returncode, "has no job that could run" in ran.stderr) == (1, True)
    assert shell.run("dlq", "show", ingest().id).returncode == 0


@pytest.mark.parametrize("line", ["requeue", "requeue --all job-1", "requeue job-1 --reason x", "remove"])
def test_unclear_selection_is_refused(shell: Shell, line: str) -> None:
    """Between "these" and "all" nothing may be guessed."""
    assert shell.run("dlq", *line.split()).returncode == 2


def test_remove_all_asks_first(redis: Redis, shell: Shell) -> None:
    """What is removed is gone for good."""
    bury(redis, Job("plan:2026-03-08", "plan", {"date": "2026-03-08"}))
    assert shell.run("dlq", "remove", "--all", stdin="n\n").returncode == 1
    assert Queue(redis, "default").counts()["dead"] == 1
    assert shell.run("dlq", "remove", "--all", "--yes").returncode == 0
    assert Queue(redis, "default").counts()["dead"] == 0


@pytest.mark.parametrize(
    "line", ["dlq list", "dlq show {id}", "status {id}", "dlq list --json", "dlq show {id} --json"]
)
def test_stored_text_cannot_act_on_the_terminal(redis: Redis, shell: Shell, line: str) -> None:
    """A provider's answer ends up in dead letters: it must not retitle, recolour or type into a terminal."""
    attack = "\x1b]0;owned\x07\u202etxt\x9b31m"
    job = ingest()
    bury(redis, job)
    keys = Queue(redis, "default").keys
    verdict = {"class": attack, "reason": attack, "detail": attack}
    redis.hset(keys.dead, job.id, _json(verdict))
    redis.hset(
        keys.errors, job.id, b"A" + _json({**verdict, "at": 1, "attempt": 1, "worker": attack, "traceback": attack})
    )
    shown = shell.on_terminal(*line.format(id=job.id).split())
    assert "owned" in shown
    for sequence in ("\x1b]0", "\x07", "\u202e", "\x9b"):
        assert sequence not in shown


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def test_ids_are_whole_on_a_narrow_terminal(redis: Redis, shell: Shell) -> None:
    """An id that is cut or wrapped cannot be pasted into the next command."""
    job = ingest("page-" + "x" * 100)
    bury(redis, job)
    assert job.id in shell.on_terminal("dlq", "list")


# -- status ----------------------------------------------------------------------------------------------------------


def test_status_counts_every_state_and_shows_workers(redis: Redis, shell: Shell) -> None:
    """The first look of the day: what is where, and who is at work."""
    queue = Queue(redis, "default")
    bury(redis, ingest("dead"))
    queue.heartbeat("worker-1", {"host": "box", "pid": 42, "slots": 8, "lease": 15.0})
    for name in ("done", "processing", "ready"):
        queue.enqueue(ingest(name))
    [[done, _]] = queue.send([queue.claim("worker-1", 2)])
    queue.send([queue.ack("worker-1", [(done.id, done.token)])])
    queue.enqueue(ingest("later"), delay=60)
    status = shell.json("status")
    [row] = [row for row in status["queues"] if row["queue"] == "default"]
    assert row.pop("oldestDead")
    expected = {"ready": 1, "processing": 1, "delayed": 1, "dead": 1, "done": 1}
    assert row == {"queue": "default", **expected}
    [worker] = status["workers"]
    assert [worker[name] for name in ("queue", "worker", "host", "pid", "slots")] == [
        "default",
        "worker-1",
        "box",
        42,
        8,
    ]
    assert 0 <= worker["beatAge"] < 60
    assert "worker-1" in shell.run("status").stdout


def test_status_warns_of_a_queue_that_nobody_serves(redis: Redis, shell: Shell) -> None:
    """Jobs that wait for a worker that was never started are the most common trouble of all."""
    Queue(redis, "backfill").enqueue(ingest(queue="backfill"))
    assert "no worker serves queue backfill" in shell.run("status").stderr


@pytest.mark.parametrize("state", ["ready", "processing", "delayed"])
@pytest.mark.parametrize("info", [b'{"lease": 15.0}', b"garbage"])
def test_status_warns_of_a_queue_whose_workers_are_all_dead(
    state: str, info: bytes, redis: Redis, shell: Shell
) -> None:
    """When the scheduler died with them nobody takes out their entries, which must not pass for workers."""
    queue = Queue(redis, "default")
    queue.enqueue(ingest(), delay=3600 if state == "delayed" else 0)
    if state == "processing":
        queue.send([queue.claim("worker-1", 1)])
    _beat(redis, "worker-1", ago=200, info=info)
    ran = shell.run("status")
    assert "no worker serves queue default, the last was heard of 3m 2" in ran.stderr
    assert "systemctl restart redisq-worker@default" in ran.stderr
    assert shell.json("status")["workers"][0]["lapsed"] is True


def test_a_worker_serves_its_queue_until_its_own_lease_is_over(redis: Redis, shell: Shell) -> None:
    """Whoever restarts a worker that lives costs its jobs a run."""
    attend(redis)
    Queue(redis, "default").retire("worker-of-default")
    Queue(redis, "default").enqueue(ingest())
    _beat(redis, "worker-1", ago=200, info=b'{"lease": 600}')
    assert shell.run("status").stderr == ""


def _beat(redis: Redis, worker: str, *, ago: float, info: bytes) -> None:
    queue = Queue(redis, "default")
    redis.hset(queue.keys.workers, worker, b"%d %s" % ((queue.now() - ago) * 1000, info))


def test_status_tells_of_a_worker_that_pauses(redis: Redis, shell: Shell) -> None:
    """A queue that stands still beside a healthy worker would puzzle whoever is called at night."""
    Queue(redis, "default").heartbeat("worker-1", {"host": "box", "paused": "database_away"})
    assert "worker-1 of queue default claims nothing: database_away" in shell.run("status").stderr
    assert shell.json("status")["workers"][0]["paused"] == "database_away"


def test_status_explains_a_job_in_every_state(redis: Redis, shell: Shell) -> None:
    """Every state is explained by one command."""
    queue = Queue(redis, "default")
    bury(redis, ingest("dead"))
    queue.heartbeat("worker-1", {"host": "box"})
    queue.enqueue_many([ingest("processing"), ingest("ready")])
    queue.send([queue.claim("worker-1", 1)])
    queue.enqueue(ingest("later"), delay=3600)
    found = {}
    for name in ("ready", "processing", "later", "dead"):
        [found[name]] = shell.json("status", ingest(name).id)["jobs"]
    assert {name: job["state"] for name, job in found.items()} == {
        "ready": "ready",
        "processing": "processing",
        "later": "delayed",
        "dead": "dead",
    }
    assert found["processing"]["worker"] == "worker-1"
    assert found["later"]["due"] > found["later"]["enqueuedAt"]
    assert (found["dead"]["failedAttempts"], found["dead"]["errors"][0]["reason"]) == (1, "token_expired")
    id = ingest("dead").id
    mend = f"redisq dlq show {id}, then redisq dlq requeue {id}"
    assert found["dead"]["why"] == f"given up after permanent token_expired: {mend}"


def test_status_names_the_command_that_settles_a_dead_job(redis: Redis, shell: Shell) -> None:
    """It can be pasted as it stands: a cancelled job has nothing to look into, a broken one nothing to run."""
    queue = Queue(redis, "default")
    queue.enqueue_many([ingest("cancelled"), ingest("broken")], delay=60.0)
    for name in ("cancelled", "broken"):
        assert queue.cancel(ingest(name).id)
    redis.hset(queue.keys.jobs, ingest("broken").id, "nonsense")
    cancelled, broken = (shell.json("status", ingest(name).id)["jobs"][0]["why"] for name in ("cancelled", "broken"))
    assert cancelled == (
        "an operator cancelled it while it was delayed; "
        "to run it after all: redisq dlq requeue ingest:cancelled:2026-03-08"
    )
    assert broken == "given up, and its job cannot be read: redisq dlq remove ingest:broken:2026-03-08"


def test_what_cannot_be_read_hides_nothing_from_the_operator(redis: Redis, shell: Shell) -> None:
    """When somebody has put their hands into Redis, it is these commands that show what is there."""
    key, job = "redisq:{{default}}:{}".format, ingest()
    bury(redis, job)
    redis.hset(key("jobs"), job.id, orjson.dumps(orjson.loads(job.encode()) | {"at": 1e300}))
    redis.hset(key("errors"), job.id, b'A{"at": "soon"}\nA[]\nA\xff')
    redis.zadd(key("dead_index"), {job.id: float("inf")})
    redis.hset(key("jobs"), "late", b"garbage")
    redis.zadd(key("delayed"), {"late": float("inf")})
    redis.hset(key("workers"), mapping={"w-1": b"9" * 5000 + b" {}", "w-2": b"\xff"})
    redis.hset(key("totals"), "done", b"garbage")
    redis.hset(key("slots"), "daily", b"9" * 30)
    for line in ("status", f"status {job.id}", "status late", "dlq list", f"dlq show {job.id}", "schedule list"):
        for form in ([], ["--json"]):
            ran = shell.run(*line.split(), *form)
            assert "Traceback" not in ran.stderr, line
            assert ran.returncode == (3 if line in ("status", f"status {job.id}") else 0), line
            assert ran.stdout, line


@pytest.mark.parametrize("command", ["status", "dlq show"])
def test_attempts_that_are_left_out_of_a_long_history_are_counted(redis: Redis, shell: Shell, command: str) -> None:
    """The number of an error stays the number of its attempt."""
    job = ingest()
    bury(redis, job)
    line = orjson.dumps({"class": "transient", "reason": "flaky", "detail": "", "at": 1, "worker": "w"})
    redis.hset("redisq:{default}:errors", job.id, b"\n".join([*[b"A" + line] * 10, b"N37", b"A" + line]))
    ran = shell.run(*command.split(), job.id)
    assert ran.returncode == (0 if command == "dlq show" else 3)  # a job that lies dead is a condition
    said = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert any(line.startswith(("errors 11-47 left out: 37", "errors 11-47: left out: 37")) for line in said)
    assert any(line.startswith(("error 48 1970", "error 48: 1970")) for line in said)
    document = shell.json(*command.split(), job.id)
    assert {"omitted": 37} in (document["errors"] if command == "dlq show" else document["jobs"][0]["errors"])


@pytest.mark.parametrize(
    ("line", "code"), [("status", 69), ("--nonsense", 2), ("dlq show no:such", 69), ("dlq remove --all", 1)]
)
@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", "<&- >&- 2>&-", "</dev/null >/dev/full 2>/dev/full"])
def test_a_command_that_can_say_nothing_still_ends_with_its_code(streams: str, line: str, code: int) -> None:
    """A script under a full disk goes by the code."""
    nowhere = Shell({"REDISQ_REDIS_URL": "redis://127.0.0.1:1/0"})
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", str(Path(sys.executable).with_name("redisq")), *line.split()]
    ran = subprocess.run(command, env=nowhere.all(), stdin=subprocess.DEVNULL, check=False)
    assert ran.returncode == code


def test_status_of_an_unknown_job_says_where_it_looked(shell: Shell) -> None:
    """A job that is done is gone from Redis, so the ledger is asked; where it is away nothing is guessed."""
    ran = shell.run("status", "ingest:fb-1:2026-03-08")
    assert (ran.returncode, ran.stdout) == (69, "")
    assert "is in no state on default, backfill, and the rest cannot be told: cannot reach postgresql" in ran.stderr
    one = shell.run("status", "ingest:fb-1:2026-03-08", "--queue", "default")
    assert (one.returncode, "without --queue the other queues are looked at" in one.stderr) == (5, True)


def test_a_queue_that_no_kind_uses_is_read_and_named(redis: Redis, shell: Shell) -> None:
    """An earlier release may have left jobs there; whoever mistyped a name must not take it for an empty queue."""
    attend(redis)
    bury(redis, ingest(queue="retired"))
    status, listed = (shell.run(*line, "--queue", "retired", "--json") for line in (["status"], ["dlq", "list"]))
    assert json.loads(status.stdout)["queues"][0]["dead"] == 1
    assert json.loads(listed.stdout)["total"] == 1
    for ran in (status, listed):
        assert (ran.returncode, ran.stderr) == (0, "redisq: no kind uses queue retired; there is default, backfill\n")
    assert shell.run("status", "--queue", "backfill").stderr == ""


# -- schedules and checks --------------------------------------------------------------------------------------------


def test_schedules_are_listed_with_their_slots(redis: Redis, shell: Shell) -> None:
    """Whether last night's run was fired is a question of every morning.

    The slot that a scheduler stores when it first sees a schedule is only the time of installation.
    """
    queue = Queue(redis, "default")
    queue.fire("daily", 1_772_974_800_000, ingest())
    queue.fire("daily", 1_773_061_200_000, None)
    queue.fire("reconcile", 1_772_974_812_345, None)
    found = {each["name"]: each for each in shell.json("schedule", "list")["schedules"]}
    assert found["daily"]["last"] == "2026-03-08T13:00:00Z"
    assert found["reconcile"]["last"] is None
    assert found["daily"]["next"]


@pytest.mark.parametrize("timezone", ["UTC", "America/Argentina/ComodRivadavia"])
def test_the_schedules_fit_a_terminal(redis: Redis, shell: Shell, tmp_path: Path, timezone: str) -> None:
    """A table that wraps cannot be read at night: the longest zone gives way, both times are there to the minute."""
    file = tmp_path / "schedules.toml"
    text = '[schedule.{}]\ncron = "*/5 * * * *"\ntimezone = "{}"\nkind = "reconcile"\n'
    file.write_text(text.format("reconcile", timezone))
    Queue(redis, "default").fire("reconcile", 1_772_974_800_000, ingest())
    shown = Shell({**shell.environ, "REDISQ_SCHEDULES": str(file)}).on_terminal("schedule", "list")
    lines = click.unstyle(shown).splitlines()
    assert max(map(len, lines)) <= 80
    [row] = [line for line in lines if "*/5" in line]
    assert "2026-03-08 13:00" in row


def test_next_slots_follow_the_file_of_the_operator(shell: Shell, tmp_path: Path) -> None:
    """What is shown is what the scheduler will do: the file replaces the application's schedules."""
    file = tmp_path / "schedules.toml"
    file.write_text('[schedule.nightly]\ncron = "30 2 * * *"\ntimezone = "Europe/Berlin"\nkind = "reconcile"\n')
    told = Shell({**shell.environ, "REDISQ_SCHEDULES": str(file)})
    ran = told.run("schedule", "next", "nightly", "-n", "3")
    assert [line[11:16] for line in ran.stdout.splitlines()] == ["02:30"] * 3
    assert (told.run("schedule", "next", "daily").returncode, told.run("doctor").returncode) == (5, 69)


def test_doctor_and_the_scheduler_warn_of_schedules_that_were_hardly_meant(shell: Shell, tmp_path: Path) -> None:
    """They are valid, and leave the nights of years unhealed."""
    file = tmp_path / "schedules.toml"
    file.write_text(
        '[schedule.nightly]\ncron = "*/120 * * * *"\nkind = "plan"\npayload = { date = "{date-1}" }\n',
    )
    told = Shell({**shell.environ, "REDISQ_SCHEDULES": str(file)})
    warnings = [
        "schedule 'nightly': */120 steps over all 60 minutes: it means once an hour",
        "no schedule runs reconcile; without a file, it runs at '*/5 * * * *'",
    ]
    findings = told.json("doctor")["findings"]
    assert [
        each["text"] for each in findings if (each["level"], each["subject"]) == ("warning", "schedules")
    ] == warnings
    scheduler = subprocess.Popen(
        [sys.executable, PROGRAMS / "scheduler"], env=told.all(), stderr=subprocess.PIPE, text=True
    )
    with scheduler:
        assert scheduler.stderr is not None
        lines = [json.loads(next(scheduler.stderr)) for _ in range(3)]
        scheduler.terminate()
        scheduler.communicate(timeout=60)
    assert [line.get("detail") for line in lines] == [*warnings, None]
    assert [line["level"] for line in lines] == ["WARNING", "WARNING", "INFO"]


def test_doctor_finds_a_redis_that_may_evict(tmp_path: Path) -> None:
    """With eviction Redis drops claimed jobs without an error: nothing matters more than to find it."""
    with private_redis(tmp_path, options=["--maxmemory-policy", "allkeys-lru"]) as server:
        ran = Shell({"REDISQ_REDIS_URL": server.url, "REDISQ_DATABASE_URL": NO_DATABASE}).json("doctor")
    assert ("failed", "eviction") in [(each["level"], each["subject"]) for each in ran["findings"]]


def test_doctor_goes_on_when_a_store_is_down(lost: Shell) -> None:
    """One look shows all there is to mend."""
    ran = lost.run("doctor")
    assert ran.returncode == 69
    for subject in ("redis", "schedules", "database", "app secret"):
        assert subject in ran.stdout
    assert "canary" not in ran.stdout + ran.stderr


def test_an_operator_who_sets_nothing_sees_what_the_services_see(tmp_path: Path) -> None:
    """At three in the morning nobody remembers which variables the unit has."""
    (tmp_path / "credentials").mkdir()
    (tmp_path / "redisq.env").write_text("# where it is\nREDISQ_REDIS_URL=redis://one?a=b&c=d\nREDISQ_SLOTS='4'\n")
    bare = {"PATH": "/bin"}
    adopt_settings(bare, tmp_path)
    assert bare == {
        "PATH": "/bin",
        "REDISQ_REDIS_URL": "redis://one?a=b&c=d",
        "REDISQ_SLOTS": "4",
        "CREDENTIALS_DIRECTORY": str(tmp_path / "credentials"),
    }
    own = {"REDISQ_SLOTS": "2"}
    adopt_settings(own, tmp_path)
    assert own == {"REDISQ_SLOTS": "2"}
    nothing: dict[str, str] = {}
    adopt_settings(nothing, tmp_path / "absent")
    assert nothing == {}
