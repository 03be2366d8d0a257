"""Exported files reach the coverage grid and the sums: all of them or none, and never over the provider's numbers."""

from __future__ import annotations

import datetime as dt
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
from tests.program import NOWHERE, PROGRAM, Shell
from tests.roles import as_services
from tests.waiting import patience

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
    """Connect a page of acme as if that was an hour ago."""
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
    """Import with `--yes`, and check that it succeeds."""
    ran = shell.run("import", *args, "--integration", page, "--yes")
    assert ran.returncode == 0, ran.stderr
    return ran


def numbers(db: Db, page: str = PAGE) -> dict[tuple[str, dt.date], int]:
    """Return the stored numbers."""
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
    """Return every row of every table, each with the transaction that wrote it."""
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
    """Act as a provider that answers the views of a day with a number, or with `status` instead of a number."""
    reading = Reading(VIEWS, of, status, reason="why") if value is None else Reading(VIEWS, of, "value", Decimal(value))
    entry = Entry(
        integration_id=page, organization_id="acme", day=of, queue="default", run_id="run", state="done",
        last_success_at=dt.datetime.now(dt.UTC),
    )  # fmt: skip
    ledger.record(db, entry, "facebook", Answer((reading,), dt.datetime.now(dt.UTC)))


# -- from an export to the grid ----------------------------------------------------------------------------------------


def test_an_export_is_two_commands_from_the_coverage_grid(shell: Shell, db: Db, tmp_path: Path) -> None:
    """A customer sends files, and a minute later everybody can see which days there are."""
    half = {day(number): 100 + number for number in range(31) if number not in (3, 9, 10)}
    views = written(tmp_path / "Views.csv", "sep=,\r\n" + suite("Views", half), "utf-16")
    ran = do(shell, views)
    assert ran.stdout == (
        f"Views.csv: Business Suite, UTF-16-LE\n"
        f"  'Views' is page_media_view\n"
        f"    28 days, {day(0)} (100) to {day(30)} (130)\n"
        f"    3 days without a number: {day(3)}, {day(9)} to {day(10)}\n"
        f"\n"
        f"acme-page-1 of acme, days of UTC\n"
        f"  numbers: 28 new\n"
        f"  28 days become done: {day(0)} to {day(2)}, {day(4)} to {day(8)},\n"
        f"    {day(11)} to {day(30)}\n"
    )
    assert numbers(db) == {(VIEWS, of): value for of, value in half.items()}
    grid = shell.json("coverage", "--org", "acme", "--from", str(day(0)), "--to", str(day(30)))
    [page] = [each for each in grid["integrations"] if each["integrationId"] == PAGE]
    assert {of for of, word in page["days"].items() if word == "done"} == {str(of) for of in half}
    assert set(page["days"].values()) == {"done"}, "of a page that is never asked nothing else is missing"
    assert (grid["counts"]["done"], grid["reasons"]) == (28, [])


def test_every_form_is_imported_side_by_side(shell: Shell, db: Db, tmp_path: Path) -> None:
    """A customer may have three kinds of files, and should not need three commands."""
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
    """Otherwise a month with one new follower would have one day and thirty holes."""
    both = suite("Views", {day(number): 9 for number in range(6)}) + "\r\n" + suite("Follows", {day(2): 4, day(4): 1})
    ran = do(shell, written(tmp_path / "Both.csv", both))
    assert f"4 days left out are 0: {day(0)} to {day(1)}, {day(3)}, {day(5)}" in ran.stdout
    follows = {of: value for (metric, of), value in numbers(db).items() if metric == FOLLOWS}
    assert follows == {day(0): 0, day(1): 0, day(2): 4, day(3): 0, day(4): 1, day(5): 0}


def test_a_row_says_which_file_it_is_of_and_the_file_who_imported_it(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Years later somebody may ask where a number comes from."""
    do(shell, views(tmp_path, 7, name="a.csv"), long_form(tmp_path, {(ALL_FOLLOWS, FIRST): 8}, "b.csv"))
    found = db.execute(
        "SELECT p.metric, f.name, f.imported_by, p.fetched_at = f.imported_at, p.breakdown, p.revision"
        " FROM page_metric_daily p JOIN import_file f ON f.sha256 = p.source ORDER BY 1"
    ).fetchall()
    who = f"ann@{os.uname().nodename}"
    assert found == [(ALL_FOLLOWS, "b.csv", who, True, None, 1), (VIEWS, "a.csv", who, True, None, 1)]


def test_sums_follow(shell: Shell, db: Db, redis: Redis, tmp_path: Path) -> None:
    """Nobody would see imported numbers that are in no sum."""
    ran = do(shell, views(tmp_path, 7, 8))
    assert "the sums of 2 days follow" in ran.stderr
    ready = {id.decode() for id in redis.lrange(Queue(redis, "default").keys.ready, 0, -1)}  # type: ignore[union-attr]  # the client answers at once
    assert ready == {f"aggregate:acme:{day(0)}", f"aggregate:acme:{day(1)}"}
    for of in (day(0), day(1)):
        aggregate(db, "acme", of, now=dt.datetime.now(dt.UTC))
    found = db.execute("SELECT day, metric, value::int, n_value, n_expected, is_final FROM org_metric_daily ORDER BY 1")
    assert found.fetchall() == [(day(0), VIEWS, 7, 1, 1, True), (day(1), VIEWS, 8, 1, 1, True)]


def test_an_import_needs_no_redis(shell: Shell, db: Db, tmp_path: Path) -> None:
    """The numbers and the marks of changed days are in PostgreSQL. Reconcile makes the sums when Redis is back."""
    cut_off = Shell({**shell.environ, "REDISQ_REDIS_URL": f"redis://{NOWHERE}"})
    ran = do(cut_off, views(tmp_path, 7))
    assert "reconcile sums up 1 day within five minutes" in ran.stderr
    assert db.execute("SELECT organization_id, day, reason FROM aggregate_dirty").fetchall() == [
        ("acme", FIRST, "import")
    ]


# -- again -------------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(shell: Shell, db: Db, redis: Redis, tmp_path: Path) -> None:
    """A person who only wants to look must be sure that nothing is written."""
    before = everything(db)
    ran = shell.run("import", views(tmp_path, 7, 8), "--integration", PAGE, "--dry-run")
    assert (ran.returncode, ran.stderr) == (0, "nothing is written: --dry-run\n")
    assert "numbers: 2 new" in ran.stdout
    assert (everything(db), redis.keys()) == (before, [])


def test_the_same_file_again_changes_nothing(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Nobody remembers which files were imported, so importing one twice must be harmless."""
    file = views(tmp_path, 7, 8)
    do(shell, file)
    before = everything(db, but="import_file")
    ran = do(shell, file)
    assert "numbers: 2 unchanged\n  2 days are done already" in ran.stdout
    assert ran.stderr == "nothing has changed\n"
    assert everything(db, but="import_file") == before
    assert db.execute("SELECT count(*) FROM import_file").fetchall() == [(1,)]


def test_a_file_is_noted_when_it_is_imported_again(shell: Shell, db: Db, tmp_path: Path) -> None:
    """The table keeps the last name of the file, and who imported it last."""
    do(shell, views(tmp_path, 7, name="old.csv"))
    db.execute("UPDATE import_file SET imported_at = '2026-01-01', imported_by = 'bob@there'")
    do(shell, views(tmp_path, 7, name="new.csv"))
    found = db.execute("SELECT name, imported_at > now() - interval '1 hour', imported_by FROM import_file").fetchall()
    assert found == [("new.csv", True, f"ann@{os.uname().nodename}")]


def test_a_corrected_file_restates_and_says_what_changed(shell: Shell, db: Db, tmp_path: Path) -> None:
    """If the command did not show a correction, the customer would find it first."""
    do(shell, views(tmp_path, 1, 2, 3, 4, 5, 6, 7, 8, name="a.csv"))
    [(old_source,)] = db.execute("SELECT sha256 FROM import_file").fetchall()
    ran = do(shell, views(tmp_path, 1, 20, 30, 40, 50, 60, 70, name="b.csv"))
    assert "numbers: 6 restated, 1 unchanged\n" in ran.stdout
    assert f"    {day(1)} page_media_view 2 -> 20\n" in ran.stdout
    assert f"    {day(5)} page_media_view 6 -> 60\n    and 1 more\n" in ran.stdout
    assert "wrote 6 restated numbers\n" in ran.stderr
    assert "the sums of 6 days follow" in ran.stderr
    history = db.execute("SELECT day, revision, old_value::int, new_value::int, source FROM page_metric_history")
    [(new_source,)] = db.execute("SELECT sha256 FROM import_file WHERE name = 'b.csv'").fetchall()
    assert sorted(history) == [(day(n), 2, n + 1, 10 * (n + 1), new_source) for n in range(1, 7)]
    sources = [source for (source,) in db.execute("SELECT source FROM page_metric_daily ORDER BY day")]
    assert sources == [old_source, *[new_source] * 6, old_source]


def test_sums_follow_a_correction(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Even a final sum is wrong after one of its numbers was corrected."""
    for value in (7, 9):
        do(shell, views(tmp_path, value))
        assert db.execute("SELECT count(*) FROM aggregate_dirty").fetchall() == [(1,)]
        aggregate(db, "acme", FIRST, now=dt.datetime.now(dt.UTC))
        found = db.execute("SELECT value::int, restated_after_final FROM org_metric_daily").fetchall()
        assert found == [(value, value == 9)]


# -- beside the provider -----------------------------------------------------------------------------------------------


def test_an_import_never_replaces_what_the_provider_said(shell: Shell, db: Db, tmp_path: Path) -> None:
    """An export may count differently from the API, and one series must not mix both."""
    read(db, day(0), 10)
    read(db, day(1), 11)
    before = everything(db, but="import_file")
    ran = do(shell, views(tmp_path, 10, 99), page="fb-1")
    assert "numbers: 1 unchanged, 1 kept as the provider gave them\n" in ran.stdout
    assert f"{day(1)} page_media_view stays 11, not 99\n    --over-provider replaces" in ran.stdout
    assert everything(db, but="import_file") == before


def test_an_import_replaces_what_the_provider_said_when_it_is_told_to(shell: Shell, db: Db, tmp_path: Path) -> None:
    """The person may know that the API was wrong."""
    read(db, day(0), 10)
    read(db, day(1), 11)
    ran = do(shell, views(tmp_path, 10, 99), "--over-provider", page="fb-1")
    assert "numbers: 1 restated, 1 unchanged" in ran.stdout
    found = db.execute("SELECT value::int, revision, source IS NULL, run_id FROM page_metric_daily ORDER BY day")
    assert found.fetchall() == [(10, 1, True, "run"), (99, 2, False, None)]


def test_a_later_reading_restates_an_imported_number(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Then the number is the provider's, and the next import leaves it alone."""
    do(shell, views(tmp_path, 5), page="fb-1")
    read(db, day(0), 6)
    assert db.execute("SELECT value::int, source FROM page_metric_daily").fetchall() == [(6, None)]
    do(shell, views(tmp_path, 5), page="fb-1")
    assert numbers(db, "fb-1") == {(VIEWS, day(0)): 6}


@pytest.mark.parametrize("status", ["no_data", "pending", "unsupported", "unreadable"])
def test_an_answer_without_a_number_gives_way(shell: Shell, db: Db, tmp_path: Path, status: Status) -> None:
    """A file's number replaces an empty answer, and a later empty answer does not remove it."""
    read(db, day(0), None, status=status)
    ran = do(shell, views(tmp_path, 5), page="fb-1")
    assert "numbers: 1 new" in ran.stdout
    revision = 1 if status == "pending" else 2
    found = db.execute("SELECT value::int, status, reason, revision FROM page_metric_daily").fetchall()
    assert found == [(5, "value", None, revision)]
    read(db, day(0), None)
    assert numbers(db, "fb-1") == {(VIEWS, day(0)): 5}


# -- the ledger --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "of_import", "of_api"),
    [
        (None, "done", "done"),
        ("done", "done", "done"),
        ("abandoned", "done", "done"),
        ("expected", "done", "expected"),
        ("dead", "done", "dead"),
        ("skipped", "done", "skipped"),
    ],
)
def test_a_day_is_done_only_when_nobody_will_ask_the_provider(
    shell: Shell, db: Db, tmp_path: Path, state: str | None, of_import: str, of_api: str
) -> None:
    """A day must not look done while its job still runs or its page waits for its owner."""
    for page, after in ((PAGE, of_import), ("fb-1", of_api)):
        if state:
            put(db, page, day(0), state, None if state == "done" else "a_reason")
        do(shell, views(tmp_path, 5), page=page)
        assert states(db, page) == {day(0): (after, True, "acme")}
        reason, detail = ("a_reason", "a sentence") if after == state != "done" else (None, None)
        found = db.execute(
            "SELECT reason, detail, letter_queue FROM ingest_day_state WHERE integration_id = %s", [page]
        )
        assert found.fetchall() == [(reason, detail, "default" if state == "dead" and after == "done" else None)]


def test_a_recent_day_stays_to_the_provider(shell: Shell, db: Db, tmp_path: Path) -> None:
    """The daily run will still plan it. If it were done now, the API would not be asked for the other metrics."""
    here = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)  # today or yesterday in Los Angeles
    ran = do(shell, views(tmp_path, 5, first=here), page="fb-1")
    assert "1 day is left to the daily run" in ran.stdout
    assert ran.stderr == "wrote 1 new number\n"
    corrected = do(shell, views(tmp_path, 4, first=here), page="fb-1")
    assert corrected.stderr == "wrote 1 restated number\n"
    do(shell, views(tmp_path, 5, first=here), page="fb-1")
    assert (numbers(db, "fb-1"), states(db, "fb-1")) == ({(VIEWS, here): 5}, {})
    assert db.execute("SELECT count(*) FROM aggregate_dirty").fetchall() == [(0,)]
    do(shell, views(tmp_path, 5, first=here))
    assert states(db) == {here: ("done", True, "acme")}


@pytest.mark.parametrize("was_read_then", [True, False])
def test_a_hole_that_reconcile_will_plan_stays_to_the_provider(
    shell: Shell, db: Db, tmp_path: Path, was_read_then: bool
) -> None:
    """If the page was connected later, reconcile will not plan the day, so the import makes it done."""
    hole = TODAY - dt.timedelta(days=6)
    if was_read_then:
        db.execute("UPDATE integration SET read_since = now() - interval '1 year'")
    assert ledger.forgotten_days(db, hole, hole) == ([hole] if was_read_then else [])
    do(shell, views(tmp_path, 5, first=hole), page="fb-1")
    assert states(db, "fb-1") == ({} if was_read_then else {hole: ("done", True, "acme")})


def test_old_days_of_a_moved_page_stay_the_old_organizations(shell: Shell, db: Db, tmp_path: Path) -> None:
    """The sums from before the move belong to another customer."""
    put(db, PAGE, day(0), "done", owner="former")
    ran = do(shell, views(tmp_path, 5, 6))
    assert "1 day of these belongs to former, which had the page then" in ran.stdout
    assert states(db) == {day(0): ("done", True, "former"), day(1): ("done", True, "acme")}
    owners = db.execute("SELECT day, organization_id FROM page_metric_daily ORDER BY 1").fetchall()
    marks = db.execute("SELECT day, organization_id FROM aggregate_dirty ORDER BY 1").fetchall()
    assert owners == marks == [(day(0), "former"), (day(1), "acme")]


def test_a_plan_leaves_imported_days_alone(shell: Shell, db: Db, tmp_path: Path) -> None:
    """A done day gets no job, no matter if a provider or a file made it done."""
    do(shell, views(tmp_path, 5), page="fb-1")
    assert ledger.expect(db, day(0), queue="backfill") == (0, 0)


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(shell: Shell, db: Db, *args: str, page: str = PAGE, code: int = 2) -> str:
    """Run an import that must be refused and change nothing. Return the last line of its message."""
    before = everything(db)
    ran = shell.run("import", *args, "--integration", page, "--yes")
    assert ran.returncode == code, ran.stderr
    assert everything(db) == before
    return ran.stderr.splitlines()[-1]


def test_one_bad_file_refuses_all(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Later nobody could tell half an import from a whole one."""
    good = views(tmp_path, 5)
    bad = written(tmp_path / "bad.csv", f"date,metric,value\n{day(0)},{VIEWS},abc\n")
    line = refused(shell, db, good, bad)
    assert line.startswith("redisq: bad.csv:2: 'abc' is no number. Write it in digits")
    assert line.endswith(" Nothing is written.")
    assert "missing.csv: No such file" in refused(shell, db, good, str(tmp_path / "missing.csv"))


def test_a_day_to_come_is_refused(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Nobody has numbers of the future, so day and month must be swapped."""
    assert "is after today" in refused(shell, db, views(tmp_path, 5, first=TODAY + dt.timedelta(days=2)))


def test_files_that_contradict_each_other_are_refused(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Only the person knows which file is right. The order of the arguments must not decide."""
    first, second = views(tmp_path, 1, 2, name="a.csv"), views(tmp_path, 1, 3, name="b.csv")
    line = refused(shell, db, first, second)
    assert f"b.csv: 3 for page_media_view on {day(1)}, and a.csv says 2." in line
    do(shell, first, views(tmp_path, 1, name="c.csv"))


def test_files_of_one_name_are_told_apart_by_their_folders(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Downloads often have the same name, and "Views.csv contradicts Views.csv" does not help."""
    (tmp_path / "may").mkdir()
    line = refused(shell, db, views(tmp_path, 1), views(tmp_path / "may", 2))
    assert f"{tmp_path}/may/numbers.csv: 2 for" in line
    assert f"{tmp_path}/numbers.csv says 1" in line


def test_a_title_without_a_metric_is_asked_for(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Numbers under a wrong metric look right for years, and numbers that are left out silently are missed late."""
    file = written(tmp_path / "Reach.csv", suite("Reach", {day(0): 5}) + "\r\n" + suite("Views", {day(0): 6}))
    line = refused(shell, db, file)
    assert "'Reach': not a known title. Name its metric with --metric 'TITLE=METRIC'" in line
    assert "`redisq metric add --provider import`" in line
    do(shell, file, "--known-only")
    assert numbers(db) == {(VIEWS, day(0)): 6}
    do(shell, file, "--metric", "reach=page_total_media_view_unique")
    assert numbers(db)["page_total_media_view_unique", day(0)] == 5


def test_a_title_is_named_for_the_files_that_have_it(shell: Shell, db: Db, tmp_path: Path) -> None:
    """One command takes all files of a page, but an option may be for only some of them."""
    reach = written(tmp_path / "Reach.csv", suite("Reach", {day(0): 5}))
    do(shell, reach, views(tmp_path, 6), "--metric", "Reach=page_total_media_view_unique")
    assert numbers(db) == {("page_total_media_view_unique", day(0)): 5, (VIEWS, day(0)): 6}
    line = refused(shell, db, reach, "--metric", "Rich=page_follows")
    assert "--metric Rich=page_follows: no file has this title. The files have 'Reach'" in line


def test_a_metric_that_the_catalog_lacks_is_refused_with_those_it_has(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Without an entry in the catalog nobody knows how the metric adds up."""
    file = written(tmp_path / "Reach.csv", suite("Reach", {day(0): 5}))
    line = refused(shell, db, file, "--metric", "reach")
    assert "the catalog has no such metric. It has page_actions_post_reactions_anger_total, " in line
    assert "Add others by `redisq metric add`" in line


def test_a_ratio_is_computed_and_not_imported(shell: Shell, db: Db, tmp_path: Path) -> None:
    """An organization's ratio is made of sums. The pages' ratios do not help to compute it."""
    db.execute(
        "INSERT INTO metric_catalog (provider, metric, additivity, numerator, denominator, supported)"
        " VALUES ('import', 'rate', 'ratio', 'page_post_engagements', %s, false)",
        [VIEWS],
    )
    line = refused(shell, db, long_form(tmp_path, {("rate", day(0)): 5}))
    assert "rate: a ratio is computed from other metrics. Import those metrics instead." in line


@pytest.mark.parametrize("deleted", ["integration", "organization", None])
def test_an_unknown_or_deleted_page_is_not_found(shell: Shell, db: Db, tmp_path: Path, deleted: str | None) -> None:
    """A mistyped id must not look like success, and must not bring back a removed page."""
    if deleted:
        db.execute(f"UPDATE {deleted} SET deleted_at = now()".encode())
    page = PAGE if deleted else "nobody"
    assert f"no integration {page!r}" in refused(shell, db, views(tmp_path, 5), page=page, code=5)


def test_nothing_is_written_without_a_word(shell: Shell, db: Db, tmp_path: Path) -> None:
    """A script without --yes must not hang, and must not write what nobody agreed to."""
    before = everything(db)
    ran = shell.run("import", views(tmp_path, 5), "--integration", PAGE)
    assert (ran.returncode, "nobody can answer here: add --yes" in ran.stderr) == (2, True)
    ran = shell.run("import", views(tmp_path, 5), "--integration", PAGE, "--json")
    assert (ran.returncode, "--json cannot ask" in ran.stderr) == (2, True)
    assert everything(db) == before


@pytest.mark.parametrize(("answer", "wrote"), [("y", True), ("n", False)])
def test_a_person_is_asked(shell: Shell, db: Db, tmp_path: Path, answer: str, wrote: bool) -> None:
    """A person who sees what was understood can still say no."""
    ours, theirs = pty.openpty()
    command = ["import", views(tmp_path, 5), "--integration", PAGE]
    with shell.start(*command, stdout=subprocess.PIPE, stdin=theirs) as process:
        os.write(ours, f"{answer}\n".encode())
        out, said = process.communicate(timeout=patience())
    os.close(ours)
    os.close(theirs)
    assert "numbers: 1 new" in out.decode()
    assert "Write this? [y/N]" in said.decode()
    assert ("redisq: nothing is written\n" in said.decode()) == (not wrote)
    assert (process.returncode, bool(numbers(db))) == ((0, True) if wrote else (1, False))


def test_a_directory_is_refused_with_what_to_do_instead(shell: Shell, db: Db, tmp_path: Path) -> None:
    """`.` has no name of its own, so the message must find one."""
    ran = shell.run("import", ".", "--integration", PAGE)
    assert ran.returncode == 2
    assert f"{Path.cwd()}: a directory. Name the files in it, like *.csv" in ran.stderr
    ran = shell.run("import", str(tmp_path), "--integration", PAGE)
    assert f"{tmp_path.name}: a directory. Name the files in it, like {tmp_path}/*.csv" in ran.stderr
    assert numbers(db) == {}


@pytest.mark.usefixtures("db")
def test_an_unknown_page_is_shown_as_it_was_typed(shell: Shell, tmp_path: Path) -> None:
    """The blank at its end may be the mistake."""
    ran = shell.run("import", views(tmp_path, 5), "--integration", f"{PAGE} ")
    assert (ran.returncode, f"no integration '{PAGE} ':" in ran.stderr) == (5, True), ran.stderr


@pytest.mark.usefixtures("db")
def test_a_long_refusal_wraps_between_words_on_a_terminal(shell: Shell, tmp_path: Path) -> None:
    """A person must be able to copy an option that the refusal names."""
    file = written(tmp_path / "a.csv", suite("No such title as this one, which is long", {day(0): 1}))
    ours, theirs = pty.openpty()
    command = ["import", file, "--integration", PAGE, "--yes"]
    ran = subprocess.run(
        [PROGRAM, *command], env=shell.all(), stdout=subprocess.PIPE, stderr=theirs, timeout=patience()
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    assert ran.returncode == 2
    assert len(shown) > 1
    assert max(map(len, shown)) <= 80
    assert shell.run(*command).stderr == " ".join(shown) + "\n"


def test_a_page_that_goes_away_meanwhile_gets_nothing(
    shell: Shell, db: Db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may remove the page while the person reads the question."""
    file, place = views(tmp_path, 5), store.place

    def meanwhile(connection: Db, page: str) -> object:
        found = place(connection, page)
        db.execute("UPDATE integration SET deleted_at = now() WHERE id = %s", [page])
        return found

    monkeypatch.setattr(store, "place", meanwhile)
    ran = shell.run_here("import", file, "--integration", PAGE, "--yes")
    assert (ran.exit_code, numbers(db)) == (5, {})


# -- for programs ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("db")
def test_json_has_the_same_facts(shell: Shell, tmp_path: Path) -> None:
    """A program that imports a hundred pages checks how each file was understood."""
    do(shell, views(tmp_path, 1, name="old.csv"))
    block = suite("Views", {day(0): 2, day(2): 3}) + "\r\n" + suite("Follows", {day(1): 4})
    file = written(tmp_path / "Both.csv", block)
    dry, wet = (shell.json("import", file, "--integration", PAGE, word) for word in ("--dry-run", "--yes"))
    assert (dry.pop("written"), wet.pop("written")) == (
        None,
        {"new": 4, "restated": 1, "daysDone": 2, "sumsChanged": {"acme": 3}, "sumsEnqueued": True},
    )
    assert dry == wet
    [parsed] = wet.pop("files")
    assert parsed["series"][0] == {
        "title": "Views",
        "metric": VIEWS,
        "days": 2,
        "first": {"date": str(day(0)), "value": "2"},
        "last": {"date": str(day(2)), "value": "3"},
        "gaps": [str(day(1))],
        "zeros": [],
    }
    assert parsed["series"][1]["zeros"] == [str(day(0)), str(day(2))]
    assert (parsed["name"], parsed["form"], parsed["encoding"]) == ("Both.csv", "business_suite", "utf-8")
    done, rest = [str(day(0))], {word: [] for word in ("left", "expected", "dead", "skipped")}
    assert wet == {
        "schema": 1,
        "organizationId": "acme",
        "integrationId": PAGE,
        "zone": "UTC",
        "numbers": {"new": 4, "restated": 1, "unchanged": 0, "kept": 0},
        "restated": [{"date": str(day(0)), "metric": VIEWS, "stored": "1", "file": "2"}],
        "kept": [],
        "days": {"becomeDone": [str(day(1)), str(day(2))], "done": done, **rest},
        "formerOrganizations": {},
    }


@pytest.mark.usefixtures("db")
def test_a_report_fits_eighty_columns(shell: Shell, tmp_path: Path) -> None:
    """Real files have long titles, long numbers and many gaps."""
    metric = "page_actions_post_reactions_sorry_total"
    days = {day(number): int("9" * 30) - number for number in range(0, 50, 2)}
    title = "Eine sehr lange Überschrift, wie sie in Exporten vorkommt, mit vielen Worten"
    file = written(tmp_path / f"{'n' * 60}.csv", suite(title, days))
    for _ in range(2):
        ran = do(shell, file, "--metric", metric)
        assert max(map(len, ran.stdout.splitlines())) <= 80
        file = written(tmp_path / "b.csv", suite(title, {of: value - 1 for of, value in days.items()}))


def test_a_name_that_is_no_text_is_imported(shell: Shell, db: Db, tmp_path: Path) -> None:
    """Old archives have file names in old encodings."""
    file = tmp_path / "A\udcffugust.csv"
    os.rename(views(tmp_path, 5), file)
    do(shell, str(file))
    assert db.execute("SELECT name FROM import_file").fetchall() == [("A\\udcffugust.csv",)]
