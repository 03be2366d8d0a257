"""What an operator sees of the pages and their days: the application's commands, run as the real program."""

import datetime as dt
import json
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from cryptography.fernet import Fernet
from redis import Redis

from jobs import ledger
from jobs.app import application
from jobs.commands import hooks
from jobs.ledger import Entry
from jobs.program import PROGRAM
from jobs.providers.base import Answer, Reading
from jobs.vault import Vault
from redisq import DeadLetter, Job, Queue
from tests.many_pages import many_pages
from tests.pages import a_world
from tests.program import NOWHERE, Shell, attend, bury, ingest
from tests.program import PROGRAM as PROGRAM_PATH
from tests.roles import as_services
from tests.waiting import eventually, patience

TOKEN = "EAAB-canary-token"
TODAY = dt.datetime.now(dt.UTC).date()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The file with the key of the stored tokens."""
    file = tmp_path / "token-key"
    file.write_text(Vault.new_key())
    return file


@pytest.fixture
def shell(redis_url: str, database: str, key: Path) -> Shell:
    """A shell with an empty Redis, a database with its schema, and a token key."""
    return Shell(
        {"REDISQ_REDIS_URL": redis_url, "REDISQ_DATABASE_URL": as_services(database), "REDISQ_TOKEN_KEY_FILE": str(key)}
    )


@pytest.fixture
def rows(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to look at what the commands wrote."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def add(shell: Shell, integration: str = "fb-1", page: str = "1122", org: str = "acme") -> None:
    """Connect a page."""
    line = ["integration", "add", "--org", org, "--integration", integration, "--page", page]
    assert shell.run(*line, stdin=TOKEN).returncode == 0


def write_day(rows: psycopg.Connection[Any], day: dt.date, state: str, reason: str | None = None) -> None:
    """Put one row of fb-1 into the ledger."""
    rows.execute(
        "INSERT INTO ingest_day_state (integration_id, day, organization_id, state, reason)"
        " VALUES ('fb-1', %s, 'acme', %s, %s)",
        [day, state, reason],
    )


def states(rows: psycopg.Connection[Any]) -> dict[str, str]:
    """Return the ledger of fb-1 by day."""
    found = rows.execute("SELECT day::text, state FROM ingest_day_state WHERE integration_id = 'fb-1'").fetchall()
    return dict(found)


def test_program_knows_the_queues_of_the_registry() -> None:
    """The program names the queues so that `status` need not load the application; the two must not drift apart."""
    assert PROGRAM.parts.queues == application.registry.queues


# -- integrations ----------------------------------------------------------------------------------------------------


def test_token_is_stored_encrypted_and_shown_nowhere(shell: Shell, rows: psycopg.Connection[Any], key: Path) -> None:
    """A token opens somebody's page: it goes into the database, sealed, and comes out to the provider alone."""
    add(shell)
    [(sealed,)] = rows.execute("SELECT token FROM integration").fetchall()
    assert Vault.from_text(key.read_text()).decrypt(sealed, "fb-1") == TOKEN
    listed = shell.run("integration", "list")
    assert "fb-1" in listed.stdout
    assert TOKEN not in listed.stdout
    assert "token" not in str(shell.json("integration", "list"))
    assert "--token " not in shell.run("integration", "add", "--help").stdout


def test_a_list_of_pages_comes_in_parts(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """A hundred thousand lines are for no terminal, and every part must say where the next begins."""
    many_pages(rows, 5, organizations=2)
    listed = shell.json("integration", "list", "--org", "org-0", "--limit", "2", "--offset", "1")
    assert (listed["total"], listed["offset"]) == (3, 1)
    assert [page["integrationId"] for page in listed["integrations"]] == ["page-2", "page-4"]
    told = shell.run("integration", "list", "--limit", "2").stderr
    assert "1 to 2 of 5; next: redisq integration list --limit 2 --offset 2" in told


def test_page_is_connected_once(shell: Shell) -> None:
    """Connecting again would count the page twice."""
    add(shell)
    line = ["integration", "add", "--org", "acme", "--integration", "fb-1", "--page", "1122"]
    again = shell.run(*line, stdin=TOKEN)
    assert (again.returncode, "connected already" in again.stderr) == (4, True)


@pytest.mark.parametrize(
    ("options", "token", "sentence"),
    [
        (["--org", "ac me", "--integration", "fb-1", "--page", "1"], TOKEN, "organization 'ac me' is not"),
        (["--org", "acme", "--integration", "fb-1", "--page", "1"], "", "the token is empty"),
        (["--org", "acme", "--integration", "fb-1", "--page", "1", "--provider", "x"], TOKEN, "provider 'x' has no"),
    ],
)
def test_page_that_cannot_be_is_refused(shell: Shell, options: list[str], token: str, sentence: str) -> None:
    """A wrong id found here costs a second, found in a worker a night."""
    ran = shell.run("integration", "add", *options, stdin=token)
    assert (ran.returncode, sentence in ran.stderr) == (2, True)


@pytest.mark.parametrize("command", ["disable", "reconnect"])
def test_unknown_page_is_not_found(shell: Shell, command: str) -> None:
    """A mistyped id must not look like success."""
    assert shell.run("integration", command, "fb-9", stdin=TOKEN).returncode == 5


def test_reconnect_runs_again_what_the_old_token_cost(
    shell: Shell, rows: psycopg.Connection[Any], redis: Redis
) -> None:
    """After a page is connected again nobody should have to look for its lost days."""
    add(shell)
    assert shell.run("integration", "disable", "fb-1").returncode == 0
    assert shell.json("integration", "list")["integrations"][0]["state"] == "disabled"
    dead, skipped = TODAY - dt.timedelta(days=3), TODAY - dt.timedelta(days=2)
    write_day(rows, dead, "dead", "token_expired")
    write_day(rows, skipped, "skipped", "refresh_needed")
    bury(redis, ingest(date=dead.isoformat()))
    ran = shell.run("integration", "reconnect", "fb-1", stdin="EAAB-fresh")
    assert "1 day is expected again, 1 dead letter runs again" in ran.stderr
    assert Queue(redis, "default").where([ingest(date=dead.isoformat()).id]) == ["ready"]
    assert states(rows)[skipped.isoformat()] == "expected"
    assert shell.json("integration", "list")["integrations"][0]["state"] == "active"


def test_keys_can_be_rotated(shell: Shell, redis: Redis, rows: psycopg.Connection[Any], key: Path) -> None:
    """A key that somebody has seen must be replaceable without connecting every page again."""
    attend(redis)
    add(shell)
    old, fresh = key.read_text(), shell.run("integration", "new-key").stdout
    key.write_text(f"{fresh}{old}\n")
    assert shell.run("integration", "rotate-tokens").returncode == 0
    key.write_text(fresh)
    [(sealed,)] = rows.execute("SELECT token FROM integration").fetchall()
    assert Vault.from_text(key.read_text()).decrypt(sealed, "fb-1") == TOKEN
    assert shell.run("doctor").returncode == 0


def token_findings(shell: Shell) -> list[tuple[str, str]]:
    """Return level and text of what `doctor` says of the stored tokens."""
    found = json.loads(shell.run("doctor", "--json").stdout)["findings"]
    return [(each["level"], each["text"]) for each in found if each["subject"] == "token key"]


def test_keys_are_rotated_and_tokens_of_an_earlier_release_are_bound(
    shell: Shell, rows: psycopg.Connection[Any], key: Path
) -> None:
    """The release that stored them bound them to no page; the operator says when no host has it any more."""
    add(shell)
    rows.execute("UPDATE integration SET token = %s", [Fernet(key.read_text()).encrypt(TOKEN.encode()).decode()])
    [(level, text)] = token_findings(shell)
    assert (level, "1 token is not bound to a page yet" in text) == ("warning", True)
    assert shell.run("integration", "rotate-tokens").returncode == 0
    assert token_findings(shell) == [("ok", "opens the stored tokens")]


def test_a_token_in_the_row_of_another_page_is_told_with_what_to_do(
    shell: Shell, rows: psycopg.Connection[Any]
) -> None:
    """Whoever may write the database must not read a page with the token of another."""
    add(shell)
    add(shell, "fb-2", "3344", "globex")
    rows.execute("UPDATE integration SET token = (SELECT token FROM integration WHERE id = 'fb-1')")
    assert shell.run("integration", "rotate-tokens").returncode == 0
    assert token_findings(shell) == [
        (
            "failed",
            "page fb-2: this token was stored for another page, fb-1; connect the page again with"
            " `redisq integration reconnect fb-2`",
        )
    ]
    assert shell.run("integration", "reconnect", "fb-2", stdin=TOKEN).returncode == 0
    assert token_findings(shell) == [("ok", "opens the stored tokens")]


@pytest.mark.parametrize("way", ["stdin", "file"])
@pytest.mark.parametrize("command", ["add", "reconnect"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"\xff\xfeE\x00A\x00A\x00c\x00a\x00n\x00a\x00r\x00y\x00", "is not UTF-8"),
        (b"\xef\xbb\xbfEAAcanary\n", "byte order mark"),
        (b"EAAcanary\nEAAcanary\n", "2 lines"),
        (None, "is empty"),
    ],
)
def test_what_cannot_be_a_token_is_refused_on_every_way_in(
    shell: Shell, rows: psycopg.Connection[Any], tmp_path: Path, command: str, way: str, given: bytes | None, says: str
) -> None:
    """The provider would say so in the night, and a traceback would show it. None is a stream that is closed."""
    add(shell)
    stored = rows.execute("SELECT token FROM integration").fetchall()
    line = (
        ["add", "--org", "acme", "--integration", "fb-2", "--page", "2"] if command == "add" else ["reconnect", "fb-1"]
    )
    (tmp_path / "token").write_bytes(given or b"")
    if way == "file":
        line += ["--token-file", str(tmp_path / "token")]
    program = ["sh", "-c", 'exec "$@" <&-', "sh"] if given is None else []
    with (tmp_path / "token").open("rb") as stdin:
        ran = subprocess.run(
            [*program, PROGRAM_PATH, "integration", *line],
            env=shell.all(),
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stderr.count("\n"), says in ran.stderr) == (2, 1, True), ran.stderr
    assert "canary" not in ran.stderr + ran.stdout
    assert rows.execute("SELECT token FROM integration").fetchall() == stored


# -- days ------------------------------------------------------------------------------------------------------------


def test_coverage_shows_what_became_of_each_day(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """The grid shows every hole: each day has one of seven words, and a hole makes the command end with 3."""
    add(shell)
    days = [TODAY - dt.timedelta(days=back) for back in range(8, 1, -1)]
    for day, state in zip(days, ("done", "done", "dead", "expected", "skipped", "abandoned"), strict=False):
        write_day(rows, day, state, "permission" if state == "dead" else None)
    rows.execute("UPDATE ingest_day_state SET has_value = true WHERE day = %s", [days[1]])
    span = ["--org", "acme", "--from", days[0].isoformat(), "--to", days[-1].isoformat()]
    found = shell.json("coverage", *span)
    words = ["empty", "done", "failed", "waiting", "skipped", "abandoned", "missing"]
    assert list(found["integrations"][0]["days"].values()) == words
    assert found["counts"] == {**dict.fromkeys(words, 1), "notDue": 0}
    assert found["reasons"] == [{"integrationId": "fb-1", "date": days[2].isoformat(), "reason": "permission"}]
    shown = shell.run("coverage", *span)
    letters = [letter for line in shown.stdout.splitlines() if line.startswith("fb-1") for letter in line.split()[1:]]
    assert (shown.returncode, letters) == (3, ["o", ".", "F", "w", "s", "a", "-"])
    assert "fb-1: 1 day failed, permission" in shown.stderr


def test_coverage_without_a_hole_ends_with_0(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """So that a cron job can watch it."""
    add(shell)
    write_day(rows, TODAY, "done")
    ran = shell.run("coverage", "--org", "acme", "--from", TODAY.isoformat(), "--to", TODAY.isoformat())
    assert ran.returncode == 0


@pytest.mark.parametrize("command", ["coverage", "backfill"])
def test_range_must_make_sense(shell: Shell, command: str) -> None:
    """An empty range would look like a finished one, and so would an organization that was mistyped."""
    day = TODAY.isoformat()
    backwards = shell.run(command, "--org", "acme", "--from", day, "--to", "2026-01-01")
    nonsense = shell.run(command, "--org", "acme", "--from", "2026-1-1", "--to", day)
    unknown = shell.run(command, "--org", "nobody", "--from", day, "--to", day)
    assert [ran.returncode for ran in (backwards, nonsense, unknown)] == [2, 2, 5]
    assert "date '2026-1-1' cannot be read: write YYYY-MM-DD, or today, yesterday, -7d" in nonsense.stderr
    assert "organization 'nobody' has no page: see `redisq org list`" in unknown.stderr


@pytest.mark.parametrize("command", ["coverage", "backfill"])
def test_a_range_may_be_counted_back_from_today(shell: Shell, command: str) -> None:
    """Every command that takes days takes the same words, so that nobody has to remember which one does."""
    add(shell)
    ran = shell.run(command, "--org", "acme", "--from", "-7d", "--to", "yesterday")
    assert ran.returncode in (0, 3), ran.stderr


def test_a_day_to_come_is_refused_without_advice_that_does_not_help(shell: Shell) -> None:
    """The date is written well. It is only too early."""
    ran = shell.run("coverage", "--org", "acme", "--from", "-7d", "--to", "9999-12-31")
    assert (ran.returncode, ran.stderr.rstrip().endswith("has not begun anywhere on earth")) == (2, True), ran.stderr


def test_backfill_puts_the_newest_day_first(shell: Shell, redis: Redis) -> None:
    """On a queue of its own, so that the daily run does not wait; and once, however often it is asked for."""
    add(shell)
    days = [(TODAY - dt.timedelta(days=back)).isoformat() for back in (10, 11, 12)]
    line = ["--org", "acme", "--from", days[-1], "--to", days[0]]
    assert shell.json("backfill", *line)["enqueued"] == 3
    again = shell.json("backfill", *line)
    assert (again["enqueued"], again["live"]) == (0, 3)
    queue = Queue(redis, "backfill")
    [claimed] = queue.send([queue.claim("worker-1", 10)])
    assert [each.id for each in claimed] == [f"ingest:fb-1:{day}" for day in days]


def test_backfill_refuses_what_the_provider_has_forgotten(shell: Shell) -> None:
    """A thousand jobs that can only die help nobody."""
    ran = shell.run("backfill", "--org", "acme", "--from", "2019-01-01", "--to", "2019-01-02")
    assert (ran.returncode, "730 days ago that providers keep" in ran.stderr) == (2, True)


# -- what the core's commands ask ------------------------------------------------------------------------------------


def test_enqueue_knows_the_pages(shell: Shell, redis: Redis) -> None:
    """A well-formed id of no page, or of another organization's, fails here and not in a worker."""
    add(shell)
    day = ["--date", "2026-03-08"]
    unknown = shell.run("enqueue", "ingest", "--org", "acme", "--integration", "fb-9", *day)
    foreign = shell.run("enqueue", "ingest", "--org", "other", "--integration", "fb-1", *day)
    nobody = shell.run("enqueue", "aggregate", "--org", "nobody", *day)
    assert [ran.returncode for ran in (unknown, foreign, nobody)] == [2, 2, 2]
    assert "no integration 'fb-9' is connected" in unknown.stderr
    assert "belongs to organization 'acme', not to 'other'" in foreign.stderr
    assert "organization 'nobody' has no page" in nobody.stderr
    assert redis.dbsize() == 0
    assert shell.run("enqueue", "ingest", "--org", "acme", "--integration", "fb-1", *day).returncode == 0


ENQUEUE = ("enqueue", "ingest", "--org", "acme", "--integration", "fb-1", "--date")


def test_a_day_that_was_enqueued_by_hand_comes_back_after_a_wiped_redis(
    shell: Shell, rows: psycopg.Connection[Any], redis: Redis, database: str
) -> None:
    """It is in the ledger before it is in the queue, whatever the ledger had of it."""
    add(shell)
    asked = {(TODAY - dt.timedelta(days=back)): state for back, state in enumerate(("", *STATES), 5)}
    for day, state in asked.items():
        if state:
            write_day(rows, day, state)
        assert shell.run(*ENQUEUE, day.isoformat(), "--delay", "3600").returncode == 0
    redis.flushall()
    with a_world(database, redis) as world:
        world.reconciles.reconcile()
        assert set(world.ready()) >= {f"ingest:fb-1:{day}" for day in asked}


STATES = ("expected", "done", "dead", "skipped", "abandoned")


def test_a_sum_that_was_enqueued_by_hand_comes_back_after_a_wiped_redis(
    shell: Shell, redis: Redis, database: str
) -> None:
    """No day of the ledger asks for it."""
    add(shell)
    assert shell.run("enqueue", "aggregate", "--org", "acme", "--date", "2026-03-08").returncode == 0
    redis.flushall()
    with a_world(database, redis) as world:
        world.reconciles.reconcile()
        assert world.ready() == ["aggregate:acme:2026-03-08"]


def test_a_removed_letter_gives_up_the_day_of_its_id(shell: Shell, rows: psycopg.Connection[Any], redis: Redis) -> None:
    """The operator has typed the id. A payload that names another day must not cost that day its numbers."""
    add(shell)
    mine, other = TODAY - dt.timedelta(days=5), TODAY - dt.timedelta(days=6)
    for day in (mine, other):
        write_day(rows, day, "dead")
    letter = replace(ingest(date=other.isoformat()), id=ingest(date=mine.isoformat()).id)
    bury(redis, letter)
    ran = shell.run("dlq", "remove", letter.id)
    assert ran.returncode == 0
    assert f"{letter.id} has a payload that names fb-1 {other}: the id counts" in " ".join(ran.stderr.split())
    assert states(rows) == {mine.isoformat(): "abandoned", other.isoformat(): "dead"}


def test_a_removed_letter_without_a_job_gives_up_its_day(
    shell: Shell, rows: psycopg.Connection[Any], redis: Redis
) -> None:
    """Else the next reconcile would bring back what the operator has just given up."""
    add(shell)
    write_day(rows, dt.date(2026, 3, 8), "dead")
    bury(redis, ingest())
    redis.hdel(Queue(redis, "default").keys.jobs, ingest().id)
    assert shell.run("dlq", "remove", ingest().id).returncode == 0
    assert states(rows) == {"2026-03-08": "abandoned"}


def test_removed_dead_letter_is_abandoned_in_the_ledger(
    shell: Shell, rows: psycopg.Connection[Any], redis: Redis
) -> None:
    """A day that an operator gave up stays visible as that, and no plan brings it back."""
    add(shell)
    day = TODAY - dt.timedelta(days=5)
    write_day(rows, day, "dead")
    bury(redis, ingest(date=day.isoformat()))
    assert shell.run("dlq", "remove", ingest(date=day.isoformat()).id).returncode == 0
    assert states(rows) == {day.isoformat(): "abandoned"}
    backfill = shell.json("backfill", "--org", "acme", "--from", day.isoformat(), "--to", day.isoformat())
    assert backfill["enqueued"] == 0


def test_removing_dead_letters_and_a_run_that_heals_their_days_take_turns(
    shell: Shell, rows: psycopg.Connection[Any], redis: Redis, database: str
) -> None:
    """Letters come newest first, the days of a window oldest first: the database would end one of the two."""
    add(shell)
    first, second, last = (TODAY - dt.timedelta(days=back) for back in (7, 6, 5))
    for day in (first, second):
        write_day(rows, day, "dead")
        bury(redis, ingest(date=day.isoformat()))
    numbers = tuple(Reading("page_media_view", day, "value", Decimal(1)) for day in (first, second, last))
    entry = Entry(integration_id="fb-1", organization_id="acme", day=last, queue="default", run_id="run", state="done")

    def read_later_day() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            ledger.record(connection, entry, "facebook", Answer(numbers, dt.datetime.now(dt.UTC)))

    def waiting(transactions: int) -> bool:
        return rows.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchall() == [(transactions,)]

    with ThreadPoolExecutor(2) as threads, psycopg.connect(database) as holder:
        holder.execute("SELECT FROM ingest_day_state WHERE day = %s FOR UPDATE", [second])
        removed = threads.submit(shell.run, "dlq", "remove", "--all", "--yes")
        eventually(lambda: waiting(1))
        healed = threads.submit(read_later_day)
        eventually(lambda: waiting(2))
        holder.rollback()
        healed.result(patience())
        assert removed.result(patience()).returncode == 0
    assert states(rows) == {first.isoformat(): "abandoned", second.isoformat(): "abandoned", last.isoformat(): "done"}


@pytest.mark.parametrize("which", [["--all", "--yes"], [ingest().id]])
def test_a_letter_that_is_requeued_during_its_removal_is_told(
    which: list[str],
    shell: Shell,
    rows: psycopg.Connection[Any],
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its job will run although its day is marked as given up, which nobody would look for."""
    add(shell)
    write_day(rows, dt.date(2026, 3, 8), "dead")
    bury(redis, ingest())
    queue, abandon = Queue(redis, "default"), hooks.abandon

    def meanwhile(letters: Sequence[DeadLetter]) -> None:
        abandon(letters)
        queue.requeue([letter.id for letter in letters])

    monkeypatch.setattr(hooks, "abandon", meanwhile)
    ran = shell.run_here("dlq", "remove", *which)
    assert ran.exit_code == 6
    assert f"{ingest().id} was requeued meanwhile, yet counts as given up until it has run" in ran.output
    assert (queue.where([ingest().id]), states(rows)) == (["ready"], {"2026-03-08": "abandoned"})


def test_dead_letter_with_a_bad_payload_can_be_removed(shell: Shell, redis: Redis) -> None:
    """What died of its payload has no day in the ledger, and must not stay for ever because of that."""
    bury(redis, Job("ingest:fb-1:x", "ingest", {"integrationId": "fb-1", "date": "x"}))
    assert shell.run("dlq", "remove", "ingest:fb-1:x").returncode == 0
    assert Queue(redis, "default").counts()["dead"] == 0


def test_dead_letter_stays_when_the_ledger_cannot_be_told(shell: Shell, redis: Redis) -> None:
    """Otherwise the ledger would wait for a job that nobody has any more."""
    bury(redis, ingest())
    cut_off = Shell({**shell.environ, "REDISQ_DATABASE_URL": f"postgresql://redisq:canary@{NOWHERE}/redisq"})
    ran = cut_off.run("dlq", "remove", ingest().id)
    assert ran.returncode == 69
    assert ran.stderr.startswith(f"redisq: cannot reach postgresql at {NOWHERE}/redisq: ")
    assert "canary" not in ran.stderr
    assert Queue(redis, "default").counts()["dead"] == 1


# -- where a job is that Redis does not have --------------------------------------------------------------------------

DAY = TODAY - dt.timedelta(days=5)
LEDGER: dict[str, tuple[str, str | None, str, int]] = {
    # state and reason of the row -> what status says, and its exit code
    "waiting": ("expected", "rate_limited", "the ledger awaits it, rate_limited; reconcile enqueues it", 0),
    "done": ("done", None, "answered, without a number, since 2", 0),
    "failed": ("dead", "token_expired", f"--integration fb-1 --from {DAY} --to {DAY} --only failed", 3),
    "abandoned": ("abandoned", None, f"redisq enqueue ingest --org acme --integration fb-1 --date {DAY}", 0),
}


@pytest.mark.parametrize("word", LEDGER)
def test_status_of_a_day_that_redis_does_not_have_is_the_ledger_s(
    word: str, shell: Shell, redis: Redis, rows: psycopg.Connection[Any]
) -> None:
    """ "It is done, or never was" was said of days that wait, of failed ones, and of some that nobody had heard of."""
    state, reason, why, code = LEDGER[word]
    attend(redis)
    add(shell)
    write_day(rows, DAY, state, reason)
    ran = shell.run("status", f"ingest:fb-1:{DAY}")
    assert (ran.returncode, ran.stderr) == (code, "")
    assert f"state  {word}\n" in ran.stdout
    assert why in ran.stdout
    [job] = shell.json("status", f"ingest:fb-1:{DAY}")["jobs"]
    assert (job["id"], job["state"]) == (f"ingest:fb-1:{DAY}", word)


def test_a_waiting_day_says_who_is_missing_to_bring_it(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Nothing runs: what comes back by itself then comes back never."""
    add(shell)
    write_day(rows, DAY, "expected")
    ran = shell.run("status", f"ingest:fb-1:{DAY}")
    assert ran.returncode == 3
    for unit in ("redisq-worker@default", "redisq-scheduler"):
        assert f": systemctl restart {unit}\n" in ran.stderr


def test_a_disabled_page_s_day_says_so(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Whether the ledger has a row of it or not."""
    add(shell)
    write_day(rows, DAY, "skipped", "disabled")
    assert shell.run("integration", "disable", "fb-1").returncode == 0
    for day in (DAY, DAY - dt.timedelta(days=1)):
        ran = shell.run("status", f"ingest:fb-1:{day}")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert "the page is disabled, its days are not read: redisq integration enable fb-1" in ran.stdout


def test_a_day_that_waits_for_its_page_s_owner_says_so(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Nothing but a person brings it back."""
    add(shell)
    write_day(rows, DAY, "skipped", "refresh_needed")
    rows.execute("UPDATE integration SET refresh_needed = true")
    ran = shell.run("status", f"ingest:fb-1:{DAY}")
    assert (ran.returncode, "redisq integration reconnect fb-1 --token-file FILE" in ran.stdout) == (3, True)


@pytest.mark.parametrize(
    ("id", "why"),
    [
        (f"ingest:fb-1:{DAY}", f"redisq backfill --org acme --integration fb-1 --from {DAY} --to {DAY}"),
        (f"ingest:nobody:{DAY}", "no page 'nobody' was ever connected: see `redisq integration list`"),
        ("ingest:fb-1:2026-02-30", "no job has such an id: write ingest:PAGE:DATE"),
        ("ingest:fb-1", "no job has such an id: write ingest:PAGE:DATE"),
        ("nonsense", "no kind 'nonsense'; there is aggregate, ingest, plan, reconcile"),
        (f"aggregate:acme:{DAY}", f"there are no sums of {DAY}, and none are due"),
        (f"plan:{DAY}", f"the ledger has {DAY} of no page: redisq enqueue plan --date {DAY}"),
    ],
)
def test_an_invented_job_is_not_found_and_the_reason_is_given(id: str, why: str, shell: Shell) -> None:
    """A mistyped id must not look like a job that is done."""
    add(shell)
    ran = shell.run("status", id)
    assert (ran.returncode, ran.stdout) == (5, "")
    assert f"{id} is in no state on default, backfill: " in ran.stderr
    assert why in ran.stderr


def test_a_day_that_has_not_ended_is_not_due(shell: Shell, redis: Redis) -> None:
    """It is asked for in the morning, long before its page's zone has come to its end."""
    attend(redis)
    add(shell)
    ran = shell.run("status", f"ingest:fb-1:{dt.datetime.now(ZoneInfo('America/Los_Angeles')).date()}")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "has not ended in America/Los_Angeles; a plan expects it after that" in ran.stdout


def test_sums_plans_and_reconcile_say_what_became_of_them(
    shell: Shell, redis: Redis, rows: psycopg.Connection[Any]
) -> None:
    """They too are gone from Redis once they are done."""
    attend(redis)
    add(shell)
    write_day(rows, DAY, "done")
    rows.execute("INSERT INTO aggregate_dirty (organization_id, day, reason) VALUES ('acme', %s, 'done')", [DAY])
    due = shell.run("status", f"aggregate:acme:{DAY}")
    assert (due.returncode, "state  waiting\n" in due.stdout) == (0, True)
    plan = shell.run("status", f"plan:{DAY}")
    assert (plan.returncode, f"the ledger has {DAY} of 1 page\n" in plan.stdout) == (0, True)
    assert "its schedule enqueues it again" in shell.run("status", "reconcile:all").stdout
    for none in ("reconcile", "reconcile:foo", "plan", "ingest:fb-1", "ingest:fb-1:yesterday"):
        ran = shell.run("status", none)
        assert (ran.returncode, "no job has such an id: write ingest:PAGE:DATE" in ran.stderr) == (5, True), ran.stderr


# -- the schema ------------------------------------------------------------------------------------------------------


def test_empty_database_is_found_and_upgraded(redis: Redis, redis_url: str, dsn: str, key: Path) -> None:
    """The first hour of a new installation: every message says what to do next."""
    attend(redis)
    files = {"REDISQ_TOKEN_KEY_FILE": str(key)}
    shell = Shell({"REDISQ_REDIS_URL": redis_url, "REDISQ_DATABASE_URL": dsn, **files})
    before = shell.run("integration", "list")
    assert (before.returncode, "run `redisq db upgrade`" in before.stderr) == (1, True)
    assert shell.run("doctor").returncode == 3
    first, second = shell.run("db", "upgrade"), shell.run("db", "upgrade")
    assert first.stdout.startswith("0001_schema.sql\n")
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, "")
    assert shell.run("doctor").returncode == 0


def test_doctor_finds_a_key_that_opens_nothing(shell: Shell, key: Path) -> None:
    """A lost key is found before the night's run finds it twenty times."""
    add(shell)
    key.write_text(Vault.new_key())
    ran = shell.run("doctor")
    assert (ran.returncode, "no key of the key file opens this token" in ran.stdout) == (3, True)


def test_doctor_finds_a_missing_key(shell: Shell) -> None:
    """Nothing can be read without it."""
    environ = {name: value for name, value in shell.environ.items() if name != "REDISQ_TOKEN_KEY_FILE"}
    ran = Shell(environ).run("doctor")
    assert (ran.returncode, "there is no token key" in ran.stdout) == (3, True)


@pytest.mark.parametrize("line", ["integration list", "db upgrade", "coverage --org acme --from {day} --to {day}"])
def test_postgresql_that_is_down_is_one_line_without_password(shell: Shell, line: str) -> None:
    """The cause at a glance, and no secret in a ticket."""
    cut_off = Shell({**shell.environ, "REDISQ_DATABASE_URL": f"postgresql://redisq:canary@{NOWHERE}/redisq"})
    ran = cut_off.run(*line.format(day=TODAY).split())
    assert (ran.returncode, len(ran.stderr.splitlines())) == (69, 1)
    assert ran.stderr.startswith(f"redisq: cannot reach postgresql at {NOWHERE}/redisq: ")
    assert "canary" not in ran.stderr


@pytest.mark.parametrize(
    "line",
    [
        ("ingest", "--org", "acme", "--integration", "fb-1"),
        ("aggregate", "--org", "acme"),
        ("plan",),
    ],
    ids=lambda line: line[0],
)
def test_a_day_that_providers_have_forgotten_is_refused_before_it_is_enqueued(
    shell: Shell, redis: Redis, line: tuple[str, ...]
) -> None:
    """A plan of 1980 would lay down one dead letter for every page."""
    add(shell)
    ran = shell.run("enqueue", *line, "--date", "1980-01-01")
    assert ran.returncode == 2
    assert "1980-01-01 is more than the 730 days ago that providers keep" in ran.stderr
    assert redis.keys() == []


def test_a_csv_page_needs_no_token(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """There is nobody to give one."""
    ran = shell.run("integration", "add", "--org", "acme", "--integration", "f-1", "--page", "11", "--provider", "csv")
    assert ran.returncode == 0, ran.stderr
    assert rows.execute("SELECT provider FROM integration").fetchall() == [("csv",)]


def set_for_all(rows: psycopg.Connection[Any], setting: str) -> None:
    """Change a setting of the database for whoever connects from now on."""
    [name] = rows.execute("SELECT current_database()").fetchone() or [""]
    rows.execute(f"ALTER DATABASE {name} SET {setting}".encode())


@pytest.mark.parametrize(
    "line",
    [
        "backfill --org acme --from 2026-03-07 --to 2026-03-08",
        "integration disable fb-1",
        "integration rename fb-1 name",
        "integration remove fb-1 --yes",
        "dlq remove ingest:fb-1:2026-03-08",
    ],
)
def test_a_read_only_database_ends_a_command_with_69(
    line: str, shell: Shell, rows: psycopg.Connection[Any], redis: Redis
) -> None:
    """After a failover it is a standby: nothing is wrong with the command, and a script may repeat it."""
    add(shell)
    bury(redis, ingest())
    set_for_all(rows, "default_transaction_read_only = on")
    ran = shell.run(*line.split())
    assert (ran.returncode, ran.stdout) == (69, "")
    assert "takes no writes" in ran.stderr
    assert "point REDISQ_DATABASE_URL at the primary" in ran.stderr
    assert Queue(redis, "default").counts()["dead"] == 1


@pytest.mark.slow
def test_a_lock_that_others_hold_ends_a_command_with_69(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """The database can be reached, and whoever reads that it cannot looks in the wrong place."""
    add(shell)
    with rows.transaction():
        rows.execute("LOCK TABLE integration")
        ran = shell.run("integration", "disable", "fb-1")
    assert (ran.returncode, "is held up by others" in ran.stderr) == (69, True)
