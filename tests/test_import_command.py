"""Exported files end up in the coverage grid and in the sums: all of them or none, and never over the provider."""

from __future__ import annotations

import datetime as dt
import json
import os
import pty
import subprocess
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from jobs import integrations, ledger
from jobs.aggregate import aggregate
from jobs.importing import store
from jobs.ledger import Entry
from jobs.providers.base import Answer, Reading, Status
from jobs.vault import Vault
from redisq import Queue
from tests.program import NOWHERE, Shell
from tests.roles import as_services

TODAY = dt.datetime.now(dt.UTC).date()
FIRST = TODAY - dt.timedelta(days=60)
PAGE = "acme-page-1"
VIEWS, FOLLOWS, ALL_FOLLOWS = "page_media_view", "page_daily_follows", "page_follows"

Db = psycopg.Connection[Any]


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
        {
            "REDISQ_REDIS_URL": redis_url,
            "REDISQ_DATABASE_URL": as_services(database),
            "REDISQ_TOKEN_KEY_FILE": str(key),
            "LOGNAME": "ann",
        }
    )


@pytest.fixture
def db(database: str, key: Path) -> Iterator[Db]:
    """A connection to look at what the command wrote, beside one page of each kind."""
    with psycopg.connect(database, autocommit=True) as connection:
        connect(connection, PAGE, "import", key)
        connect(connection, "fb-1", "facebook", key)
        yield connection


def connect(db: Db, page: str, provider: str, key: Path) -> None:
    """Connect a page of acme, which was connected an hour ago."""
    assert integrations.add(
        db,
        Vault.from_text(key.read_text()),
        organization_id="acme",
        integration_id=page,
        provider=provider,
        page_id=page,
        token="-",
    )
    db.execute("UPDATE integration SET read_since = now() - interval '1 hour'")


def day(number: int) -> dt.date:
    return FIRST + dt.timedelta(days=number)


def long_form(folder: Path, numbers: Mapping[tuple[str, dt.date], object], name: str = "numbers.csv") -> str:
    """Write a file of the long form and return its path."""
    lines = ["date,metric,value", *(f"{of},{metric},{value}" for (metric, of), value in numbers.items())]
    return written(folder / name, "\n".join(lines))


def views(folder: Path, *values: int, name: str = "numbers.csv", first: dt.date = FIRST) -> str:
    """Write the views of days from `first` on."""
    days = [first + dt.timedelta(days=number) for number in range(len(values))]
    return long_form(folder, {(VIEWS, of): value for of, value in zip(days, values, strict=True)}, name)


def suite(title: str, numbers: Mapping[dt.date, int]) -> str:
    """Return a block as Business Suite exports it."""
    rows = [f'"{of}T00:00:00","{value}"' for of, value in numbers.items()]
    return "\r\n".join([f'"{title}"', '"Date","Primary"', *rows, ""])


def written(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


def do(shell: Shell, *args: str, page: str = PAGE) -> subprocess.CompletedProcess[str]:
    """Import without a question, and well."""
    ran = shell.run("import", *args, "--integration", page, "--yes")
    assert ran.returncode == 0, ran.stderr
    return ran


def numbers(db: Db, page: str = PAGE) -> dict[tuple[str, dt.date], int]:
    """Return what is stored as a number."""
    rows = db.execute(
        "SELECT metric, day, value::int FROM page_metric_daily WHERE integration_id = %s AND status = 'value'", [page]
    )
    return {(metric, of): value for metric, of, value in rows}


def states(db: Db, page: str = PAGE) -> dict[dt.date, tuple[str, bool, str]]:
    """Return state, number and owner of each day of the ledger."""
    rows = db.execute(
        "SELECT day, state, has_value, organization_id FROM ingest_day_state WHERE integration_id = %s", [page]
    )
    return {of: (state, has_value, owner) for of, state, has_value, owner in rows}


def everything(db: Db, *, but: str = "") -> dict[str, list[Any]]:
    """Return every row of every table with the transaction that wrote it."""
    tables = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {
        table: db.execute(f"SELECT xmin::text, t.* FROM {table} t ORDER BY t::text".encode()).fetchall()
        for (table,) in tables
        if table != but
    }


def put(db: Db, page: str, of: dt.date, state: str, reason: str | None = None, owner: str = "acme") -> None:
    """Put one row into the ledger."""
    db.execute("INSERT INTO organization (id) VALUES (%s) ON CONFLICT DO NOTHING", [owner])
    db.execute(
        "INSERT INTO ingest_day_state (integration_id, day, organization_id, state, reason, error_class, detail)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [page, of, owner, state, reason, reason and "permanent", reason and "a sentence"],
    )


def read(db: Db, of: dt.date, value: int | None, page: str = "fb-1", status: Status = "no_data") -> None:
    """Let the provider answer the views of a day, or with `status` instead of a number."""
    reading = Reading(VIEWS, of, status) if value is None else Reading(VIEWS, of, "value", Decimal(value))
    entry = Entry(
        integration_id=page, organization_id="acme", day=of, queue="default", run_id="run", state="done",
        last_success_at=dt.datetime.now(dt.UTC),
    )  # fmt: skip
    ledger.record(db, entry, "facebook", Answer((reading,), dt.datetime.now(dt.UTC)))


# -- from an export to the grid ----------------------------------------------------------------------------------------


def test_an_export_is_two_commands_from_the_coverage_grid(shell: Shell, db: Db, tmp_path: Path) -> None:
    """A customer hands over what he downloaded, and a minute later everybody sees which days there are."""
    half = {day(number): 100 + number for number in range(31) if number not in (3, 9, 10)}
    views = written(tmp_path / "Views.csv", "sep=,\r\n" + suite("Views", half), "utf-16")
    ran = do(shell, views)
    assert ran.stdout == (
        f"Views.csv: Business Suite, UTF-16-LE\n"
        f"  'Views' is page_media_view\n"
        f"    28 days, {day(0)} (100) to {day(30)} (130)\n"
        f"    3 days without a number: {day(3)}, {day(9)} to {day(10)}\n"
        f"\n"
        f"acme-page-1 of acme, days of America/Los_Angeles\n"
        f"  numbers: 28 new\n"
        f"  28 days become done: {day(0)} to {day(2)}, {day(4)} to {day(8)},\n"
        f"    {day(11)} to {day(30)}\n"
    )
    assert numbers(db) == {(VIEWS, of): value for of, value in half.items()}
    grid = shell.json("coverage", "--org", "acme", "--from", str(day(0)), "--to", str(day(30)))
    [page] = [each for each in grid["integrations"] if each["integrationId"] == PAGE]
    assert {of for of, word in page["days"].items() if word == "done"} == {str(of) for of in half}
    assert set(page["days"].values()) == {"done", "missing"}
    assert (grid["counts"]["done"], grid["reasons"]) == (28, [])


def test_every_form_is_imported_side_by_side(shell: Shell, db: Db, tmp_path: Path) -> None:
    """One customer has three kinds of files, and nobody should import them one by one."""
    block = written(tmp_path / "Visits.csv", suite("Facebook visits", {day(0): 1, day(1): 2}))
    wide = (
        f"Date,Lifetime Total Follows,Daily Post Engagements\n"
        f',"Lifetime: The number","Daily: The number"\n{day(0)},1204,17\n{day(1)},1205,\n'
    )
    wide = written(tmp_path / "Page.csv", wide)
    rest = long_form(tmp_path, {("page_actions_post_reactions_like_total", day(1)): 5})
    do(shell, block, wide, rest)
    assert numbers(db) == {
        ("page_views_total", day(0)): 1,
        ("page_views_total", day(1)): 2,
        (ALL_FOLLOWS, day(0)): 1204,
        (ALL_FOLLOWS, day(1)): 1205,
        ("page_post_engagements", day(0)): 17,
        ("page_actions_post_reactions_like_total", day(1)): 5,
    }
    assert states(db) == {day(0): ("done", True, "acme"), day(1): ("done", True, "acme")}


def test_days_that_an_export_leaves_out_as_zero_are_zeros(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Else a month with one new follower would have one day and thirty holes."""
    both = suite("Views", {day(number): 9 for number in range(6)}) + "\r\n" + suite("Follows", {day(2): 4, day(4): 1})
    ran = do(shell, written(tmp_path / "Both.csv", both))
    assert f"4 days left out are 0: {day(0)} to {day(1)}, {day(3)}, {day(5)}" in ran.stdout
    follows = {of: value for (metric, of), value in numbers(db).items() if metric == FOLLOWS}
    assert follows == {day(0): 0, day(1): 0, day(2): 4, day(3): 0, day(4): 1, day(5): 0}


def test_a_row_says_which_file_it_is_of_and_the_file_who_imported_it(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Years later somebody asks where a number comes from."""
    do(shell, views(tmp_path, 7, name="a.csv"), long_form(tmp_path, {(ALL_FOLLOWS, FIRST): 8}, "b.csv"))
    found = db.execute(
        "SELECT p.metric, f.name, f.imported_by, p.fetched_at = f.imported_at, p.breakdown, p.revision"
        " FROM page_metric_daily p JOIN import_file f ON f.sha256 = p.source ORDER BY 1"
    ).fetchall()
    who = f"ann@{os.uname().nodename}"
    assert found == [(ALL_FOLLOWS, "b.csv", who, True, None, 1), (VIEWS, "a.csv", who, True, None, 1)]


def test_sums_follow(shell: Shell, db: Db, redis: Redis, tmp_path: Path) -> None:
    """Imported numbers that no sum knows of would be seen by nobody."""
    ran = do(shell, views(tmp_path, 7, 8))
    assert "the sums of 2 days follow now" in ran.stderr
    ready = {id.decode() for id in redis.lrange(Queue(redis, "default").keys.ready, 0, -1)}  # type: ignore[union-attr]  # the client answers at once
    assert ready == {f"aggregate:acme:{day(0)}", f"aggregate:acme:{day(1)}"}
    for of in (day(0), day(1)):
        aggregate(db, "acme", of, now=dt.datetime.now(dt.UTC))
    found = db.execute("SELECT day, metric, value::int, n_value, n_expected, is_final FROM org_metric_daily ORDER BY 1")
    assert found.fetchall() == [(day(0), VIEWS, 7, 1, 1, True), (day(1), VIEWS, 8, 1, 1, True)]


def test_an_import_needs_no_redis(shell: Shell, db: Db, tmp_path: Path) -> None:
    """The numbers are in PostgreSQL and so are the marks of the sums: reconcile sees to them when Redis is back."""
    cut_off = Shell({**shell.environ, "REDISQ_REDIS_URL": f"redis://{NOWHERE}"})
    ran = do(cut_off, views(tmp_path, 7))
    assert "reconcile sums up 1 days within five minutes" in ran.stderr
    assert db.execute("SELECT organization_id, day, reason FROM aggregate_dirty").fetchall() == [
        ("acme", FIRST, "import")
    ]
