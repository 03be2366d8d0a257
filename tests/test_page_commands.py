"""What an operator does with pages, organizations and metrics, with the real program on a real database."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from jobs.commands.coverage import WORD_OF_MARK
from jobs.vault import Vault
from tests.program import PROGRAM, Shell
from tests.roles import as_services
from tests.test_rights import OWNER_PASSWORD, create_owner
from tests.waiting import patience

TODAY = dt.datetime.now(dt.UTC).date()


@pytest.fixture
def shell(redis_url: str, database: str, tmp_path: Path) -> Shell:
    """A shell with the rights of the services."""
    (tmp_path / "token-key").write_text(Vault.new_key())
    return Shell(
        {
            "REDISQ_REDIS_URL": redis_url,
            "REDISQ_DATABASE_URL": as_services(database),
            "REDISQ_TOKEN_KEY_FILE": str(tmp_path / "token-key"),
        }
    )


@pytest.fixture
def owner(shell: Shell, database: str) -> Shell:
    """A shell with the rights of the schema's owner."""
    return Shell({**shell.environ, "REDISQ_DATABASE_URL": database})


@pytest.fixture
def rows(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection for the test to prepare rows and to look at the result."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def add(shell: Shell, integration: str = "fb-1", page: str = "1122", *options: str, org: str = "acme") -> None:
    """Connect a page."""
    line = ["integration", "add", "--org", org, "--integration", integration, "--page", page, *options]
    ran = shell.run(*line, stdin="EAAB-token")
    assert ran.returncode == 0, ran.stderr


def write_day(
    rows: psycopg.Connection[Any],
    day: dt.date,
    state: str,
    reason: str | None = None,
    *,
    page: str = "fb-1",
    has_value: bool = False,
) -> None:
    """Put a day of the organization acme into the ledger."""
    rows.execute(
        "INSERT INTO ingest_day_state (integration_id, day, organization_id, state, reason, has_value)"
        " VALUES (%s, %s, 'acme', %s, %s, %s)",
        [page, day, state, reason, has_value],
    )


def back(days: int) -> dt.date:
    return TODAY - dt.timedelta(days=days)


# -- connecting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["acme", "acme.1122", "-1122", "\u0661\u0662", "1122/insights"])
def test_a_facebook_page_is_connected_by_its_number(shell: Shell, page: str) -> None:
    """The API accepts a page's name, too, but its owner may give that name to another page."""
    ran = shell.run("integration", "add", "--org", "acme", "--integration", "fb-1", f"--page={page}", stdin="EAAB")
    assert (ran.returncode, "a page is added by its number of 1 to 30 digits" in ran.stderr) == (2, True), ran.stderr


@pytest.mark.parametrize("provider", ["csv", "import"])
def test_a_page_of_files_needs_no_token_and_may_have_a_zone(
    shell: Shell, rows: psycopg.Connection[Any], provider: str
) -> None:
    """A file needs no token, and only the person who exports it knows its zone."""
    add(shell, "f-1", "1", "--provider", provider)
    add(shell, "f-2", "2", "--provider", provider, "--zone", "Europe/Berlin", "--user", "team-1")
    found = rows.execute("SELECT id, provider, zone, user_id FROM integration ORDER BY id").fetchall()
    assert found == [("f-1", provider, "UTC", None), ("f-2", provider, "Europe/Berlin", "team-1")]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--provider", "csv"], "connected shop; its days are of UTC (--zone names another)\n"),
        (["--provider", "import", "--zone", "Asia/Tokyo"], "connected shop; its days are of Asia/Tokyo\n"),
        ([], "connected shop; its days are of America/Los_Angeles\n"),
    ],
)
def test_connecting_a_page_names_the_zone_of_its_days(shell: Shell, options: list[str], told: str) -> None:
    """A wrong zone puts each number on a wrong day, and nobody sees that later."""
    ran = shell.run("integration", "add", "--org", "acme", "--integration", "shop", "--page", "1", *options, stdin="E")
    assert (ran.returncode, ran.stderr) == (0, told)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--provider", "cvs"], 2, "provider 'cvs' has no metrics in the catalog: did you mean csv?"),
        (["--name", "a\tb"], 2, "has characters that cannot be shown"),
        (["--user", "a b"], 2, "user 'a b' is not 1 to 128"),
        (["--integration", "fb-1"], 4, "is connected already"),
    ],
)
def test_no_token_is_asked_for_in_vain(shell: Shell, options: list[str], code: int, sentence: str) -> None:
    """Here the token is empty, which would be the second complaint. A person had to fetch it first."""
    add(shell)
    ran = shell.run("integration", "add", "--org", "acme", "--integration", "fb-2", "--page", "7", *options)
    assert (ran.returncode, sentence in ran.stderr) == (code, True), ran.stderr


def test_a_facebook_page_has_the_zone_of_facebook(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Facebook's days always begin in California."""
    line = ["integration", "add", "--org", "acme", "--integration", "fb-1", "--page", "1", "--zone", "Europe/Berlin"]
    ran = shell.run(*line, stdin="EAAB")
    assert (ran.returncode, "is always America/Los_Angeles" in ran.stderr) == (2, True)
    add(shell)
    assert rows.execute("SELECT zone FROM integration").fetchall() == [("America/Los_Angeles",)]


@pytest.mark.parametrize(
    ("zone", "sentence"),
    [
        ("Europe/Berln", "there is no zone 'Europe/Berln': did you mean Europe/Berlin?"),
        ("America", "there is no zone 'America'"),
        ("../etc/passwd", "there is no zone '../etc/passwd'"),
        ("localtime", "there is no zone 'localtime'"),
    ],
)
def test_a_zone_that_is_none_is_refused(shell: Shell, zone: str, sentence: str) -> None:
    """The person who types it must see the error, not each job. `localtime` means another zone on each machine."""
    line = ["integration", "add", "--org", "acme", "--integration", "f-1", "--page", "1", "--provider", "csv"]
    ran = shell.run(*line, "--zone", zone)
    assert (ran.returncode, sentence in ran.stderr) == (2, True), ran.stderr


def test_a_csv_page_that_can_name_no_file_is_refused(shell: Shell) -> None:
    """A file for such a page could never be found."""
    line = ["integration", "add", "--org", "acme", "--integration", "f-1", "--page", ".hidden", "--provider", "csv"]
    ran = shell.run(*line)
    assert (ran.returncode, "'.hidden' cannot name a file" in ran.stderr) == (2, True)


def test_a_list_shows_the_zone_of_each_page(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Days of two zones add up under one date, so the list must show whose zone is which.

    Only programs need the user.
    """
    add(shell, "f-1", "1", "--provider", "csv", "--zone", "Asia/Tokyo", "--user", "team-1")
    add(shell, "fb-1", "1122", "--name", "Our shop")
    rows.execute("UPDATE integration SET refresh_needed = true, refresh_reason = 'token_expired' WHERE id = 'fb-1'")
    listed = shell.run("integration", "list").stdout.splitlines()
    assert [line.split() for line in listed] == [
        ["ORG", "INTEGRATION", "PROVIDER", "PAGE", "ZONE", "NAME", "STATE"],
        ["acme", "f-1", "csv", "1", "Asia/Tokyo", "-", "active"],
        ["acme", "fb-1", "facebook", "1122", "America/Los_Angeles", "Our", "shop", "token_expired"],
    ]
    of_acme = shell.run("integration", "list", "--org", "acme").stdout.splitlines()
    assert of_acme[1].split() == ["f-1", "csv", "1", "Asia/Tokyo", "-", "active"]
    pages = shell.json("integration", "list")["integrations"]
    assert [(page["zone"], page["user"]) for page in pages] == [("Asia/Tokyo", "team-1"), ("America/Los_Angeles", None)]


def test_a_zone_that_all_share_is_said_once(shell: Shell) -> None:
    """80 columns are few, and the same word in each line tells nobody more."""
    add(shell)
    add(shell, "fb-2", "2")
    for line in (["integration", "list"], ["org", "list"]):
        ran = shell.run(*line)
        assert (ran.stderr, "ZONE" in ran.stdout) == ("days of America/Los_Angeles\n", False)


def test_lists_fit_eighty_columns_and_keep_ids_whole(shell: Shell) -> None:
    """A line that wraps cannot be read, and an id that is cut cannot be pasted. A name gives way."""
    for number, org in enumerate(("acme", "birch")):
        name = f"Shop number {number}, with a very long name"
        add(shell, f"{org}-page-{number}", f"10000000000{number}", "--name", name, org=org)
        add(shell, f"{org}-f-{number}", f"{number}", "--provider", "csv", "--zone", "Europe/Berlin", org=org)
    for line, ids in (
        (["integration", "list"], ["acme-page-0", "100000000000", "birch-page-1", "birch-f-1"]),
        (["integration", "list", "--org", "birch"], ["birch-page-1", "100000000001", "Shop"]),
        (["org", "list"], ["acme", "birch"]),
    ):
        shown = re.sub("\x1b\\[[0-9;]*m", "", shell.on_terminal(*line)).splitlines()
        assert max(len(each.rstrip()) for each in shown) <= 80, shown
        assert all(any(id in each for each in shown) for id in ids), shown
        assert len([each for each in shown if each.strip()]) == 2 + (4 if line == ["integration", "list"] else 2), shown


# -- changing --------------------------------------------------------------------------------------------------------


def test_enabling_brings_back_what_was_skipped(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Nobody should have to search for skipped days, and the page needs no fresh token."""
    add(shell)
    shell.run("integration", "disable", "fb-1")
    rows.execute("UPDATE integration SET read_since = '2026-01-01'")
    write_day(rows, back(2), "skipped", "disabled")
    write_day(rows, back(3), "done", has_value=True)
    write_day(rows, back(800), "skipped", "disabled")
    ran = shell.run("integration", "enable", "fb-1")
    assert (ran.returncode, "enabled fb-1: 1 day is expected again" in ran.stderr) == (0, True)
    states = dict(rows.execute("SELECT day, state FROM ingest_day_state").fetchall())
    assert states == {back(2): "expected", back(3): "done", back(800): "skipped"}
    read_now = "SELECT NOT disabled AND read_since > now() - interval '1 minute' FROM integration"
    assert rows.execute(read_now).fetchall() == [(True,)]


def test_enabling_what_is_not_disabled_keeps_since_when_it_is_read(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Otherwise reconcile would not find days that were never planned."""
    add(shell)
    rows.execute("UPDATE integration SET read_since = '2026-01-01 00:00+00'")
    assert shell.run("integration", "enable", "fb-1").returncode == 0
    assert rows.execute("SELECT read_since FROM integration").fetchone() == (dt.datetime(2026, 1, 1, tzinfo=dt.UTC),)


def test_enabling_a_page_whose_owner_must_connect_it_says_so(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Without a message the page would look enabled, but nobody would read it."""
    add(shell)
    rows.execute("UPDATE integration SET disabled = true, refresh_needed = true, refresh_reason = 'token_expired'")
    write_day(rows, back(2), "skipped", "refresh_needed")
    ran = shell.run("integration", "enable", "fb-1")
    assert ran.returncode == 0
    assert "waits for its owner (token_expired): connect it with `redisq integration reconnect fb-1`" in ran.stderr
    assert rows.execute("SELECT state FROM ingest_day_state").fetchall() == [("skipped",)]


def test_a_page_that_moves_leaves_its_days_behind(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """The sums of the old organization stay right, and the new one gets none of its days."""
    add(shell)
    add(shell, "fb-2", "3344", org="globex")
    write_day(rows, back(2), "done", has_value=True)
    write_day(rows, back(1), "expected")
    ran = shell.run("integration", "move", "fb-1", "--to", "globex")
    assert ran.returncode == 0, ran.stderr
    assert "moved fb-1 to globex: 2 days until now stay with acme, and each day from now on is of globex" in ran.stderr
    assert rows.execute("SELECT organization_id FROM integration WHERE id = 'fb-1'").fetchone() == ("globex",)
    assert rows.execute("SELECT DISTINCT organization_id FROM ingest_day_state").fetchall() == [("acme",)]
    dates = ["--from", back(2).isoformat(), "--to", back(1).isoformat()]
    left = shell.json("coverage", "--org", "acme", *dates)
    assert [(page["integrationId"], list(page["days"].values())) for page in left["integrations"]] == [
        ("fb-1", ["done", "waiting"])
    ]
    taken = shell.json("coverage", "--org", "globex", *dates)["integrations"]
    assert [page["days"] for page in taken if page["integrationId"] == "fb-1"] == [{}]


def test_a_page_moves_to_an_organization_that_exists_and_has_it_not(
    shell: Shell, rows: psycopg.Connection[Any]
) -> None:
    """A mistyped organization must not get pages, and a page must not be in one organization twice."""
    add(shell)
    add(shell, "fb-2", "1122", org="globex")
    nowhere = shell.run("integration", "move", "fb-1", "--to", "globx")
    assert (nowhere.returncode, "no organization 'globx': see `redisq org list`" in nowhere.stderr) == (5, True)
    twice, stays = (shell.run("integration", "move", "fb-1", "--to", org) for org in ("globex", "acme"))
    assert (twice.returncode, stays.returncode) == (4, 4)
    assert "organization 'globex' has this page already" in twice.stderr
    assert rows.execute("SELECT organization_id FROM integration WHERE id = 'fb-1'").fetchone() == ("acme",)


def test_a_page_is_renamed_for_people_alone(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Numbers, jobs and dead letters belong to the id, which stays."""
    add(shell)
    ran = shell.run("integration", "rename", "fb-1", "Our shop in Köln")
    assert (ran.returncode, "fb-1 is called 'Our shop in Köln'" in ran.stderr) == (0, True)
    assert rows.execute("SELECT id, name FROM integration").fetchall() == [("fb-1", "Our shop in Köln")]
    assert shell.run("integration", "rename", "fb-1", "\x1b[31mred").returncode == 2
    assert shell.run("integration", "rename", "fb-1", "x" * 201).returncode == 2


def test_removing_keeps_the_numbers_and_says_so(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """A person who removes a page wants no more reads, but does not want last month to be empty."""
    add(shell)
    write_day(rows, back(2), "done", has_value=True)
    unasked = shell.run("integration", "remove", "fb-1")
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    assert rows.execute("SELECT deleted_at IS NULL FROM integration").fetchone() == (True,)
    ran = shell.run("integration", "remove", "fb-1", "--yes")
    assert "removed fb-1: it is not read any more; its numbers of 1 day stay" in ran.stderr
    assert shell.json("integration", "list")["integrations"] == []
    assert shell.json("integration", "show", "fb-1")["state"] == "deleted"
    assert rows.execute("SELECT count(*) FROM ingest_day_state").fetchone() == (1,)
    assert shell.run("integration", "remove", "fb-1", "--yes").returncode == 5


def test_a_removed_page_comes_back_under_its_id(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Otherwise a mistake could not be undone: the page counts as connected, but no list shows it."""
    add(shell)
    shell.run("integration", "remove", "fb-1", "--yes")
    line = ["integration", "add", "--org", "acme", "--integration", "fb-2", "--page", "1122"]
    other = shell.run(*line, stdin="EAAB")
    assert (other.returncode, "it was removed as fb-1: add it under that id" in other.stderr) == (4, True)
    add(shell)
    assert rows.execute("SELECT id, deleted_at FROM integration").fetchall() == [("fb-1", None)]


def test_show_tells_all_facts_of_a_page(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """One command shows what a person needs before a decision."""
    add(shell, "fb-1", "1122", "--name", "Our shop", "--user", "team-1")
    write_day(rows, back(4), "done", has_value=True)
    write_day(rows, back(3), "done")
    write_day(rows, back(2), "dead", "server")
    rows.execute("INSERT INTO metric_refusal VALUES ('fb-1', 'page_follows', 'facebook', %s)", [back(2)])
    rows.execute("INSERT INTO page_load VALUES ('fb-1', 30, 4, now() + interval '1 day')")
    shown = shell.json("integration", "show", "fb-1")
    assert shown.pop("connectedAt") == shown.pop("readSince")
    assert shown == {
        "organizationId": "acme",
        "integrationId": "fb-1",
        "provider": "facebook",
        "page": "1122",
        "zone": "America/Los_Angeles",
        "user": "team-1",
        "state": "active",
        "reason": None,
        "name": "Our shop",
        "removedAt": None,
        "firstDay": back(4).isoformat(),
        "lastDay": back(2).isoformat(),
        "lastNumber": back(4).isoformat(),
        "daysWithNumber": 1,
        "openDays": 1,
        "refused": [{"metric": "page_follows", "on": back(2).isoformat()}],
        "load": {"days": 30, "metrics": 4},
    }
    table = shell.run("integration", "show", "fb-1").stdout
    for line in ("refused           page_follows, the last time on", "a call asks for   at most 30 days and 4 metrics"):
        assert line in table


@pytest.mark.parametrize(
    "line", ["enable fb-9", "move fb-9 --to acme", "rename fb-9 Shop", "remove fb-9 --yes", "show fb-9", "disable fb-9"]
)
def test_a_page_that_is_not_there_is_not_found(shell: Shell, line: str) -> None:
    """A mistyped id must not look like success."""
    add(shell)
    ran = shell.run("integration", *line.split())
    assert (ran.returncode, "no integration 'fb-9': see `redisq integration list`" in ran.stderr) == (5, True)


def test_an_organization_that_is_not_there_is_not_found(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """An empty list would mean that all its pages are gone. An organization without pages is found."""
    rows.execute("INSERT INTO organization (id) VALUES ('new')")
    unknown, empty = (shell.run("integration", "list", "--org", org) for org in ("globx", "new"))
    assert (unknown.returncode, "no organization 'globx': see `redisq org list`" in unknown.stderr) == (5, True)
    assert empty.returncode == 0


@pytest.mark.parametrize(
    "line", ["integration show \udcff", "integration list --org \udcff", "metric list --provider \udcff"]
)
def test_bytes_that_are_no_text_are_refused_in_one_line(shell: Shell, line: str) -> None:
    """A paste from a broken terminal must not end in a traceback."""
    ran = shell.run(*line.split())
    assert (ran.returncode, ran.stderr) == (2, "redisq: an argument is not UTF-8 text\n")


# -- organizations ---------------------------------------------------------------------------------------------------


def test_organizations_are_listed_with_their_pages_and_days(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """The list shows the organizations, what must be mended, the zones, and the first and last day with a number."""
    for page in range(4):
        add(shell, f"fb-{page}", str(page))
    add(shell, "f-1", "7", "--provider", "csv", org="globex")
    add(shell, "f-2", "8", "--provider", "csv", "--zone", "Asia/Tokyo", org="globex")
    rows.execute("UPDATE integration SET disabled = true WHERE id = 'fb-1'")
    rows.execute("UPDATE integration SET refresh_needed = true WHERE id = 'fb-2'")
    rows.execute("UPDATE integration SET deleted_at = now() WHERE id = 'fb-3'")
    for days, has_value in ((9, False), (8, True), (7, True), (6, False)):
        write_day(rows, back(days), "done", page="fb-0", has_value=has_value)
    assert shell.json("org", "list")["organizations"] == [
        {
            "organizationId": "acme",
            "pages": 3,
            "active": 1,
            "disabled": 1,
            "reconnect": 1,
            "zones": ["America/Los_Angeles"],
            "firstNumber": back(8).isoformat(),
            "lastNumber": back(7).isoformat(),
        },
        {
            "organizationId": "globex",
            "pages": 2,
            "active": 2,
            "disabled": 0,
            "reconnect": 0,
            "zones": ["Asia/Tokyo", "UTC"],
            "firstNumber": None,
            "lastNumber": None,
        },
    ]
    shown = [line.split() for line in shell.run("org", "list").stdout.splitlines()]
    assert shown == [
        ["ORG", "ACTIVE", "DISABLED", "RECONNECT", "FIRST", "LAST", "ZONE"],
        ["acme", "1", "1", "1", back(8).isoformat(), back(7).isoformat(), "America/Los_Angeles"],
        ["globex", "2", "0", "0", "-", "-", "mixed"],
    ]


# -- coverage --------------------------------------------------------------------------------------------------------


def covered(shell: Shell, first: int, last: int = 1) -> tuple[int, dict[str, Any], str]:
    """Return the exit code of `coverage` for acme over a range of days, its document, and what it says to people."""
    span = ["--org", "acme", "--from", back(first).isoformat(), "--to", back(last).isoformat()]
    shown = shell.run("coverage", *span)
    return shown.returncode, shell.json("coverage", *span), f"{shown.stdout}{shown.stderr}"


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ({3: True, 2: False, 1: True}, 3),
        ({3: False, 2: False, 1: True}, 0),
        ({3: False, 2: False, 1: False}, 0),
        ({9: True, 3: False, 2: False, 1: False}, 3),
        ({9: False, 3: False, 2: False, 1: False}, 0),
    ],
    ids=["after one", "before one", "never one", "after one before the range", "never one before the range"],
)
def test_a_day_without_a_number_is_seen_and_an_alarm_after_one_with_numbers(
    shell: Shell, rows: psycopg.Connection[Any], numbers: dict[int, bool], code: int
) -> None:
    """The provider answered and every job ended well, but the numbers that people wait for are missing."""
    add(shell)
    for days, has_value in numbers.items():
        write_day(rows, back(days), "done", has_value=has_value)
    ended, found, told = covered(shell, 3)
    words = {back(days).isoformat(): "done" if numbers[days] else "empty" for days in (3, 2, 1)}
    assert found["integrations"] == [{"integrationId": "fb-1", "zone": "America/Los_Angeles", "days": words}]
    assert found["counts"]["empty"] == list(words.values()).count("empty")
    assert ended == code
    assert ("fb-1: 1 day empty, and it had numbers before" in told) == (list(numbers) == [3, 2, 1] and code == 3)


def test_a_disabled_page_misses_no_day(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Somebody disabled it on purpose: the grid shows no hole, and gives the reason."""
    add(shell)
    write_day(rows, back(3), "done", has_value=True)
    write_day(rows, back(2), "skipped", "disabled")
    shell.run("integration", "disable", "fb-1")
    ended, found, told = covered(shell, 3)
    assert list(found["integrations"][0]["days"].values()) == ["done", "skipped", "skipped"]
    assert [(each["date"], each["reason"]) for each in found["reasons"]] == [
        (back(2).isoformat(), "disabled"),
        (back(1).isoformat(), "disabled"),
    ]
    assert (ended, "fb-1: 2 days skipped, disabled" in told) == (0, True)


def test_a_page_that_nobody_asks_misses_no_day(shell: Shell) -> None:
    """A page whose numbers are only imported cannot be late."""
    add(shell, "i-1", "1", "--provider", "import")
    ended, found, told = covered(shell, 3)
    assert (ended, found["integrations"][0]["days"]) == (0, {})
    assert "i-1: numbers are only imported" in told


def test_coverage_names_the_zones_of_its_days(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """A person who compares two pages must know that one date does not mean the same hours."""
    add(shell)
    write_day(rows, back(1), "done", has_value=True)
    assert "\ndays of America/Los_Angeles\n" in covered(shell, 1)[2]
    add(shell, "fb-2", "2")
    add(shell, "f-1", "3", "--provider", "csv")
    _, found, told = covered(shell, 1)
    assert "\ndays of mixed zones: America/Los_Angeles (2), UTC (1)\n" in told
    assert [page["zone"] for page in found["integrations"]] == ["UTC", "America/Los_Angeles", "America/Los_Angeles"]


def test_a_day_that_is_not_over_is_not_missing(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Nobody has planned it yet, and nobody should be alarmed. A day that is in the ledger shows its state."""
    add(shell, "f-1", "1", "--provider", "csv")
    write_day(rows, back(1), "done", page="f-1", has_value=True)
    ended, found, told = covered(shell, 1, 0)
    assert list(found["integrations"][0]["days"].values()) == ["done", "notDue"]
    assert (ended, found["counts"]["notDue"], found["counts"]["missing"]) == (0, 1, 0)
    assert "~ not due 1" in told
    write_day(rows, back(0), "expected", page="f-1")
    assert list(covered(shell, 1, 0)[1]["integrations"][0]["days"].values()) == ["done", "waiting"]


def test_coverage_of_one_page_shows_no_other(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """Two hundred lines around the one that somebody asks for hide it. A mistyped id must not look like success."""
    add(shell)
    add(shell, "fb-2", "2")
    write_day(rows, back(2), "done", has_value=True)
    write_day(rows, back(2), "dead", "server", page="fb-2")
    span = ["coverage", "--org", "acme", "--from", back(2).isoformat(), "--to", back(2).isoformat()]
    found = shell.json(*span, "--integration", "fb-1")
    assert [page["integrationId"] for page in found["integrations"]] == ["fb-1"]
    assert (found["counts"]["failed"], found["reasons"]) == (0, [])
    assert shell.run(*span, "--integration", "fb-1").returncode == 0
    unknown = shell.run(*span, "--integration", "fb-9")
    sentence = "organization 'acme' has no page 'fb-9': see `redisq integration list`"
    assert (unknown.returncode, sentence in unknown.stderr) == (5, True)


def test_a_month_of_a_page_with_a_long_id_fits_a_terminal(shell: Shell, rows: psycopg.Connection[Any]) -> None:
    """A line that wraps puts marks under the wrong days. A pipe gets whole months."""
    add(shell, "acme-germany-page-1")
    rows.execute("UPDATE integration SET disabled = true")
    span = ["coverage", "--org", "acme", "--from", "2026-01-01", "--to", "2026-01-31"]
    shown = shell.on_terminal(*span).splitlines()
    assert max(map(len, shown)) <= 80, shown
    assert [line.split()[1:] for line in shown if line.startswith("2026-01")] == [
        [f"{day:02}" for day in range(1, 16)],
        [f"{day:02}" for day in range(16, 32)],
    ]
    assert len(shell.run(*span).stdout.splitlines()) == 2


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_the_list_of_metrics_says_what_is_asked_and_what_is_alive(
    shell: Shell, owner: Shell, rows: psycopg.Connection[Any]
) -> None:
    """The list must show a dead metric, so that nobody has to miss it in a report first."""
    rows.execute("INSERT INTO metric_life VALUES ('facebook', 'page_follows', '2026-11-28', NULL, NULL)")
    rows.execute("INSERT INTO metric_life VALUES ('facebook', 'page_media_view', '2026-10-30', '2026-11-01', NULL)")
    owner.run("metric", "retire", "--provider", "facebook", "page_views_total", "--to", "2026-03-01")
    of_facebook = shell.run("metric", "list", "--provider", "facebook").stdout.splitlines()
    found = {line.split()[0]: line.split()[1:] for line in of_facebook}
    assert found["page_follows"] == ["level", "yes", "last", "given", "2026-11-28"]
    assert found["page_media_view"] == ["sum", "yes", "dead", "since", "2026-11-01"]
    assert found["page_views_total"] == ["sum", "no", "retired,", "last", "day", "2026-03-01"]
    rows.execute("INSERT INTO metric_life VALUES ('facebook', 'page_views_total', '2026-03-03', NULL, NULL)")
    with_both = shell.run("metric", "list", "--provider", "facebook").stdout
    assert "last given 2026-03-03; retired, last day 2026-03-01" in with_both
    on_terminal = re.sub("\x1b\\[[0-9;]*m", "", shell.on_terminal("metric", "list"))
    assert max(map(len, on_terminal.splitlines())) <= 80
    [follows] = [
        each
        for each in shell.json("metric", "list", "--provider", "facebook")["metrics"]
        if each["metric"] == "page_follows"
    ]
    assert follows == {
        "provider": "facebook",
        "metric": "page_follows",
        "additivity": "level",
        "numerator": None,
        "denominator": None,
        "unit": "count",
        "from": None,
        "to": None,
        "asked": True,
        "givenOn": "2026-11-28",
        "deadSince": None,
    }
    assert shell.run("metric", "list", "--provider", "facebok").returncode == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--additivity", "sum"], "clicks of csv adds up over pages and days."),
        (["--additivity", "level"], "clicks of csv adds up over pages of one day, not over days."),
        (["--additivity", "none"], "clicks of csv does not add up: the largest page is shown."),
        (
            ["--additivity", "ratio", "--numerator", "page_post_engagements", "--denominator", "page_media_view"],
            "clicks of csv is recomputed from its parts.",
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_a_new_metric_says_what_becomes_of_it_in_a_sum(
    owner: Shell, rows: psycopg.Connection[Any], options: list[str], sentence: str
) -> None:
    """The person chose one of four words, and can read here what it means."""
    line = ["metric", "add", "--provider", "csv", "clicks", *options]
    ran = owner.run(*line, "--unit", "clicks", "--from", "2026-03-01")
    assert (ran.returncode, sentence in ran.stderr) == (0, True), ran.stderr
    found = rows.execute(
        "SELECT additivity, unit, valid_from, valid_to, supported FROM metric_catalog WHERE metric = 'clicks'"
    ).fetchall()
    assert found == [(options[1], "clicks", dt.date(2026, 3, 1), None, True)]
    assert ("redisq backfill --org ORG --from DATE --to DATE --only all" in ran.stderr) == (options[1] != "ratio")
    again = owner.run(*line)
    assert (again.returncode, "csv has a metric clicks already" in again.stderr) == (4, True)


def test_a_metric_of_imported_files_is_never_asked_for(owner: Shell, rows: psycopg.Connection[Any]) -> None:
    """Otherwise a page of `import` would be planned every day, and fail, because there is nobody to ask."""
    ran = owner.run("metric", "add", "--provider", "import", "clicks", "--additivity", "sum")
    assert "Its numbers come from `redisq import`." in ran.stderr
    assert rows.execute("SELECT supported FROM metric_catalog WHERE metric = 'clicks'").fetchall() == [(False,)]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--provider facebok clicks --additivity sum", "no provider 'facebok': there is csv, facebook, import"),
        ("--provider csv a/b --additivity sum", "metric 'a/b' is not 1 to 128"),
        ("--provider csv rate --additivity ratio", "a ratio needs --numerator and --denominator"),
        ("--provider csv rate --additivity ratio --numerator x --denominator page_follows", "no metric 'x' that a"),
        ("--provider csv rate --additivity sum --numerator page_follows", "are of a ratio"),
        ("--provider csv clicks --additivity sum --from 2026-03-02 --to 2026-03-01", "is after --to 2026-03-01"),
        ("--provider csv clicks --additivity sum --from 20260302", "write YYYY-MM-DD"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(owner: Shell, line: str, sentence: str) -> None:
    """A row of the catalog that is not valid would make every aggregate fail."""
    ran = owner.run("metric", "add", *line.split())
    assert (ran.returncode, sentence in ran.stderr) == (2, True), ran.stderr


def test_a_retired_metric_is_asked_for_no_more(owner: Shell, rows: psycopg.Connection[Any]) -> None:
    """Its stored numbers are of days on which it existed, so they stay."""
    ran = owner.run("metric", "retire", "--provider", "facebook", "page_follows")
    assert (ran.returncode, "its numbers stay and add up as before" in ran.stderr) == (0, True)
    found = "SELECT valid_to, supported FROM metric_catalog WHERE provider = 'facebook' AND metric = 'page_follows'"
    assert rows.execute(found).fetchall() == [(back(1), False)]
    assert owner.run("metric", "retire", "--provider", "facebook", "page_follow").returncode == 5
    tomorrow = (TODAY + dt.timedelta(days=1)).isoformat()
    assert owner.run("metric", "retire", "--provider", "facebook", "page_follows", "--to", tomorrow).returncode == 2
    owner.run("metric", "add", "--provider", "csv", "clicks", "--additivity", "sum", "--from", back(3).isoformat())
    early = owner.run("metric", "retire", "--provider", "csv", "clicks", "--to", "-4d")
    assert (early.returncode, "name its last day with --to" in early.stderr) == (2, True)


def test_a_retired_metric_can_be_brought_back(owner: Shell, rows: psycopg.Connection[Any]) -> None:
    """A person who retired the wrong metric must not need SQL. Its stored numbers add up as before."""
    assert owner.run("metric", "retire", "--provider", "facebook", "page_follows").returncode == 0
    add_line = ("metric", "add", "--provider", "facebook", "page_follows", "--additivity")
    assert owner.run(*add_line, "sum").returncode == 4
    assert owner.run(*add_line, "level").returncode == 0
    kept = "SELECT supported, valid_to FROM metric_catalog WHERE provider = 'facebook' AND metric = 'page_follows'"
    assert rows.execute(kept).fetchall() == [(True, None)]
    assert owner.run(*add_line, "level").returncode == 4


@pytest.mark.parametrize("line", ["add --provider csv clicks --additivity sum", "retire --provider csv page_follows"])
def test_only_the_owner_of_the_schema_changes_the_catalog(shell: Shell, line: str) -> None:
    """A stolen worker must not be able to add up what does not add up."""
    ran = shell.run("metric", *line.split())
    assert (ran.returncode, "only the owner of the schema can change" in ran.stderr) == (1, True), ran.stderr


def test_the_owner_is_the_one_whose_password_the_upgrade_has(
    shell: Shell, rows: psycopg.Connection[Any], database: str, tmp_path: Path
) -> None:
    """The address is that of the services. Only the credential differs, as with `redisq db upgrade`."""
    create_owner(database)
    rows.execute("GRANT ALL ON metric_catalog TO redisq_owner")
    (tmp_path / "database-owner-password").write_text(OWNER_PASSWORD)
    owner = Shell({**shell.environ, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    ran = owner.run("metric", "retire", "--provider", "csv", "page_follows")
    assert ran.returncode == 0, ran.stderr


# -- what the documentation tells to type ----------------------------------------------------------------------------

PROVIDERS = (Path(__file__).resolve().parents[1] / "docs" / "providers.md").read_text()


def test_every_command_of_the_page_about_providers_works(owner: Shell) -> None:
    """People type these commands from the top to the bottom."""
    lines = [line for block in PROVIDERS.split("```sh\n")[1:] for line in block.split("```")[0].splitlines()]
    assert len(lines) > 5
    for line in lines:
        _, *words = line.removesuffix(" < token").split()
        ran = owner.run(*words, stdin="EAAB-token")
        assert ran.returncode == 0, (line, ran.stderr)


@pytest.mark.parametrize("line", re.findall(r"^\| `redisq (integration [^`]*)`", PROVIDERS, re.MULTILINE))
def test_every_change_of_a_page_that_is_described_is_there(shell: Shell, line: str) -> None:
    """A table with a command that does not exist is worse than no table."""
    add(shell)
    add(shell, "fb-2", "2", org="globex")
    words = line.replace("ID", "fb-1").replace("ORG", "globex").replace("NAME", "Shop").split()
    ran = shell.run(*words, *(["--yes"] if "remove" in words else []))
    assert ran.returncode == 0, ran.stderr


def test_the_page_about_providers_knows_every_mark() -> None:
    """A person who sees a mark in the grid looks it up there."""
    told = re.findall(r"^\| `(.)` \| (\w+) \|", PROVIDERS, re.MULTILINE)
    assert dict(told) == WORD_OF_MARK


# -- where the output goes


OUTPUTS = [
    ("numbers", "--org", "acme", "--csv"),
    ("report", "--org", "acme"),
    ("coverage", "--org", "acme", "--from", "-7d", "--to", "yesterday"),
    ("org", "list"),
    ("metric", "list"),
    ("integration", "list"),
    ("integration", "show", "fb-1"),
    ("dlq", "list"),
    ("doctor",),
]


@pytest.mark.parametrize("line", OUTPUTS, ids=" ".join)
def test_an_output_that_cannot_be_written_is_one_line(shell: Shell, line: tuple[str, ...]) -> None:
    """A cron job on a full disk must not mail a traceback, and one that has closed its output wants none."""
    add(shell)
    is_empty = line[0] in ("numbers", "report")  # nothing is stored: only a line on stderr
    for redirected, codes in ((">/dev/full", (0, 1) if is_empty else (1,)), (">&-", (0, 1, 3))):
        typed = f"exec {PROGRAM} {' '.join(line)} {redirected}"
        ran = subprocess.run(
            ["sh", "-c", typed], env=shell.all(), stderr=subprocess.PIPE, text=True, timeout=patience()
        )
        assert "Traceback" not in ran.stderr, (redirected, ran.stderr)
        assert ran.returncode in codes, (redirected, ran.returncode, ran.stderr)
