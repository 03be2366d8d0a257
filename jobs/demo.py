"""The demo: twenty synthetic pages, fourteen days, real servers, and a few things that go wrong."""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs import database, integrations, payloads
from jobs.app import BACKFILL, Application
from jobs.ingest import RECENT_DAYS
from jobs.providers.insights import DAY_ZONE
from jobs.servers import private_postgres, private_redis
from jobs.simulator import Simulator
from jobs.vault import Vault
from redisq import BadSettings, Queue

PAGES = 20
DAYS = 14
ORGANIZATIONS = ("acme", "birch", "cobalt", "dune")
METRIC = "page_media_view"
EXPIRED, EXPIRED_ID = 9, "birch-3"  # the number and the id of the page whose token expires
PATIENCE = 60.0  # seconds for all of it, on a slow machine

_PASSED_ON = ("REDISQ_CSV_DIRECTORY",)  # settings of the person that hold in the demo, too

talk = Console(stderr=True)
screen = Console(soft_wrap=True)

Connection = psycopg.Connection[Any]


def run(*, keep: bool) -> int:
    """Show the whole system at work and return the exit code; with `keep` it stays up until Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything below is taken down on a `kill`, too
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="redisq-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        days = _finished_days()
        talk.print("Starting a private Redis, a private PostgreSQL and a simulator of the Graph API …")
        simulator = stack.enter_context(Simulator(pages=PAGES, seed=7, latency=0.02))
        environ = _servers(stack, folder, simulator)
        application = Application(environ)
        connection = stack.enter_context(psycopg.connect(environ["REDISQ_DATABASE_URL"], autocommit=True))
        for service in (["scheduler"], ["worker"], ["worker", "--queue", BACKFILL]):
            stack.enter_context(_running(service, folder, environ))
        talk.print(f"Planning {DAYS} days of {PAGES} synthetic pages, newest first …")
        _plan(application, connection, days[:RECENT_DAYS])
        _until(lambda: _is_idle(application.queue("default")), "the recent days")
        # Only now, for the call of one recent day mends what went wrong with another.
        _spoil(simulator)
        _plan(application, connection, days[: RECENT_DAYS + 1])  # so that one day tells of the token
        _plan(application, connection, days)
        _until(lambda: _is_summed_up(application, connection), "the sums of the last day")
        token_file = folder / f"{EXPIRED_ID}-token" if keep else Path("TOKEN")
        _show(connection, environ, days, token_file)
        if keep:
            _renew(simulator, token_file)
            _stay(folder, environ)
    return 0


def _finished_days() -> list[dt.date]:
    yesterday = dt.datetime.now(DAY_ZONE).date() - dt.timedelta(days=1)
    return [yesterday - dt.timedelta(days=back) for back in range(DAYS)]


# -- the parts ---------------------------------------------------------------------------------------------------------


def _servers(stack: ExitStack, folder: Path, simulator: Simulator) -> dict[str, str]:
    redis = stack.enter_context(private_redis(folder / "redis"))
    postgres = stack.enter_context(private_postgres(folder / "postgres"))
    key = Vault.new_key()
    key_file = folder / "token-key"
    key_file.touch(mode=0o600)
    key_file.write_text(key + "\n")
    database.upgrade(postgres.dsn)
    with psycopg.connect(postgres.dsn) as connection:
        for number, page in enumerate(simulator.pages):
            organization = ORGANIZATIONS[number % len(ORGANIZATIONS)]
            integrations.add(
                connection,
                Vault([key]),
                organization_id=organization,
                integration_id=f"{organization}-{number // len(ORGANIZATIONS) + 1}",
                provider="facebook",
                page_id=page.page_id,
                token=page.token,
                name=page.name,
            )
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("REDISQ_") or name in _PASSED_ON},
        "REDISQ_REDIS_URL": redis.url,
        "REDISQ_DATABASE_URL": postgres.dsn,
        "REDISQ_TOKEN_KEY_FILE": str(key_file),
        "REDISQ_GRAPH_URL": simulator.url,
        "REDISQ_AGGREGATE_DEADLINE": "1",  # nobody waits twelve hours for a demo
    }


def _spoil(simulator: Simulator) -> None:
    """Let some things go wrong: a server error that passes, a token that has expired, a rate limit."""
    hiccup, expired, limited = (simulator.pages[number].page_id for number in (4, EXPIRED, 14))
    simulator.script(hiccup, "fail-1-then-ok")
    simulator.script(expired, then="token-463")
    simulator.script(limited, "limit-page")


def _renew(simulator: Simulator, token_file: Path) -> None:
    """Write a token with which the page can be read again, as its owner would send it."""
    page = simulator.pages[EXPIRED]
    simulator.script(page.page_id, then="ok")
    token_file.touch(mode=0o600)
    token_file.write_text(page.token + "\n")


@contextmanager
def _running(service: list[str], folder: Path, environ: Mapping[str, str]) -> Iterator[None]:
    program = Path(sys.executable).with_name(service[0])
    with (folder / f"{service[0]}.log").open("ab") as log:
        # A session of its own: Ctrl-C is for the demo, which then stops its parts in order.
        process = subprocess.Popen([program, *service[1:]], env=environ, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -- watching ----------------------------------------------------------------------------------------------------------


def _plan(application: Application, connection: Connection, days: list[dt.date]) -> None:
    """Plan `days`, of which some may be planned already, and see them through."""
    plan = application.registry["plan"]
    application.queue("default").enqueue_many([plan.job(payloads.Plan(day.isoformat())) for day in days])
    _watch(connection, len(days))


def _watch(connection: Connection, days: int) -> None:
    """Show progress until every page-day of as many `days` has ended or waits for a rate limit to pass."""
    columns = (TextColumn("page-days"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=talk, disable=not talk.is_terminal) as progress:
        bar = progress.add_task("page-days", total=PAGES * days)

        def settled() -> bool:
            ended = "state <> 'expected' OR reason = 'rate_limited'"
            count = _one(connection, f"SELECT count(*) FROM ingest_day_state WHERE {ended}")
            progress.update(bar, completed=count)
            return bool(count == PAGES * days)

        _until(settled, "every page and day")


def _is_summed_up(application: Application, connection: Connection) -> bool:
    """Tell whether no sum is due; one at its deadline is enqueued by reconcile, which comes every five minutes only."""
    application.queue("default").enqueue(application.registry["reconcile"].job(payloads.Reconcile()))
    return bool(_one(connection, "SELECT count(*) = 0 FROM aggregate_dirty"))


def _is_idle(queue: Queue) -> bool:
    counts = queue.counts()
    return not counts["ready"] + counts["processing"] + counts["delayed"]


def _until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise BadSettings(f"the demo waited {PATIENCE:g} s for {what}; is this machine very busy?")
        time.sleep(0.1)


def _one(connection: Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    return row[0] if row else None


# -- showing -----------------------------------------------------------------------------------------------------------


def _show(connection: Connection, environ: Mapping[str, str], days: list[dt.date], token_file: Path) -> None:
    first, last = days[-1].isoformat(), days[0].isoformat()
    letter = _one(
        connection,
        "SELECT 'ingest:' || integration_id || ':' || day FROM ingest_day_state"
        " WHERE state = 'dead' ORDER BY day DESC LIMIT 1",
    )
    _redisq(environ, "status")
    _redisq(environ, "coverage", "--org", "birch", "--from", first, "--to", last)
    _redisq(environ, "coverage", "--org", "cobalt", "--from", first, "--to", last)
    _redisq(environ, "dlq", "list")
    _redisq(environ, "numbers", "--org", "birch", "--from", first, "--to", last)
    _redisq(environ, "numbers", "--org", "birch", "--metric", METRIC, "--from", first, "--to", last)
    screen.print("\n[bold]What you could type next[/] (with make demo DEMO=--keep)\n")
    for line in (
        f"redisq dlq show {letter}",
        f"redisq integration reconnect {EXPIRED_ID} --token-file {token_file}",
        f"redisq coverage --org birch --from {first} --to {last}",
        f"redisq backfill --org acme --from {days[-1] - dt.timedelta(days=7)} --to {days[-1] - dt.timedelta(days=1)}",
        f"redisq numbers --org birch --metric {METRIC} --by page",
        "redisq schedule next daily",
    ):
        screen.print(f"  {line}", highlight=False)


def _redisq(environ: Mapping[str, str], *arguments: str) -> None:
    screen.print(f"\n[bold]$ redisq {' '.join(arguments)}[/]\n", highlight=False)
    sys.stdout.flush()
    subprocess.run([Path(sys.executable).with_name("redisq"), *arguments], env=environ, check=False)


def _stay(folder: Path, environ: Mapping[str, str]) -> None:
    names = [name for name in environ if name.startswith("REDISQ_") and name != "REDISQ_AGGREGATE_DEADLINE"]
    file = folder / "environment"
    file.write_text("".join(f"export {name}='{environ[name]}'\n" for name in names))
    file.chmod(0o600)
    talk.print(f"\nAll of it stays up until you press Ctrl-C here. In another terminal:\n\n  . {file}", highlight=False)
    talk.print(f"  PATH={Path(sys.executable).parent}:$PATH\n", highlight=False)
    try:
        signal.pause()
    except KeyboardInterrupt:
        talk.print("\nTaking it down …")
