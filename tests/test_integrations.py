"""Connecting pages: tokens encrypted, tenants apart, a reconnect that brings the skipped days back."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from jobs import integrations
from jobs.vault import Vault, VaultError

KEY = Vault.new_key()
VAULT = Vault([KEY])
TODAY = dt.datetime.now(dt.UTC).date()


@pytest.fixture
def db(database: str) -> Iterator[Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def add(db: Connection[Any], organization: str, page: str, token: str = "EAAcanary", *, page_id: str = "") -> bool:
    return integrations.add(
        db,
        VAULT,
        organization_id=organization,
        integration_id=page,
        provider="facebook",
        page_id=page_id or page,
        token=token,
    )


def expect(db: Connection[Any], page: str, day: dt.date, state: str, reason: str | None) -> None:
    db.execute(
        "INSERT INTO ingest_day_state (integration_id, day, organization_id, state, reason)"
        " VALUES (%s, %s, 'org', %s, %s)",
        [page, day, state, reason],
    )


def test_no_table_holds_a_token_in_clear(db: Connection[Any]) -> None:
    """Dumps and replicas travel further than the key file."""
    add(db, "org", "page", "EAAcanary")
    assert "EAAcanary" not in str(db.execute("SELECT i.*, o.* FROM integration i, organization o").fetchall())
    found = integrations.find(db, "page")
    assert found
    assert VAULT.decrypt(found.token, found.id) == "EAAcanary"
    assert found.token not in repr(found)


def test_a_page_is_connected_once_per_organization(db: Connection[Any]) -> None:
    """Two rows for one page would count it twice; two organizations may share a page, each with its own token."""
    assert add(db, "org", "first", page_id="77")
    assert not add(db, "org", "second", page_id="77")
    assert not add(db, "org", "first", page_id="78")
    assert add(db, "other", "third", page_id="77")


@pytest.mark.parametrize(
    ("organization", "page", "token"), [("org 1", "page", "t"), ("org", "page\n", "t"), ("org", "page", "  ")]
)
def test_what_cannot_be_right_is_refused(db: Connection[Any], organization: str, page: str, token: str) -> None:
    """A bad id would fail later, in every job."""
    with pytest.raises(ValueError, match=r"is not 1 to 128|is empty"):
        add(db, organization, page, token)


def test_a_provider_without_metrics_is_refused(db: Connection[Any]) -> None:
    """Its pages would never be planned, without a word."""
    with pytest.raises(ValueError, match="'facebok' has no metrics"):
        integrations.add(
            db, VAULT, organization_id="org", integration_id="page", provider="facebok", page_id="1", token="t"
        )


def test_a_list_is_of_one_organization_or_of_all(db: Connection[Any]) -> None:
    """One tenant's operator sees one tenant."""
    add(db, "org", "b")
    add(db, "org", "a")
    add(db, "other", "c")
    db.execute("UPDATE integration SET deleted_at = now() WHERE id = 'b'")
    assert [page.id for page in integrations.list_all(db)] == ["a", "c"]
    assert [page.id for page in integrations.list_all(db, "other")] == ["c"]


def test_a_disabled_page_says_why_it_is_not_read(db: Connection[Any]) -> None:
    """The reason becomes the ledger's."""
    add(db, "org", "page")
    assert integrations.disable(db, "page")
    assert not integrations.disable(db, "nobody")
    found = integrations.find(db, "page")
    assert found
    assert found.why_not() == "disabled"


def test_reconnect_brings_back_the_days_that_waited_for_it(db: Connection[Any]) -> None:
    """A page that was out for a month misses no day; what the provider has forgotten stays skipped."""
    add(db, "org", "page")
    db.execute("UPDATE integration SET refresh_needed = true, refresh_reason = 'token_expired'")
    expect(db, "page", TODAY, "skipped", "refresh_needed")
    expect(db, "page", TODAY - dt.timedelta(days=1), "skipped", "disabled")
    expect(db, "page", TODAY - dt.timedelta(days=2), "dead", "token_expired")
    expect(db, "page", TODAY - dt.timedelta(days=731), "skipped", "refresh_needed")

    reconnected = integrations.reconnect(db, VAULT, "page", "EAAfresh")

    assert reconnected == integrations.Reconnected(2, ((TODAY - dt.timedelta(days=2), "default"),))
    expected = db.execute("SELECT day FROM ingest_day_state WHERE state = 'expected' ORDER BY day DESC").fetchall()
    assert expected == [(TODAY,), (TODAY - dt.timedelta(days=1),)]
    found = integrations.find(db, "page")
    assert found
    assert (found.why_not(), found.refresh_reason) == (None, None)
    assert VAULT.decrypt(found.token, found.id) == "EAAfresh"


def test_reconnect_of_an_unknown_page_changes_nothing(db: Connection[Any]) -> None:
    """A typing error is told, not stored."""
    assert integrations.reconnect(db, VAULT, "nobody", "EAAfresh") is None


def test_a_refusal_of_the_old_token_does_not_condemn_the_new_one(db: Connection[Any]) -> None:
    """The owner reconnects while a run with the old token is in the air: the worst moment to ask again."""
    add(db, "org", "page")
    as_read = integrations.find(db, "page")
    assert as_read
    integrations.reconnect(db, VAULT, "page", "EAAfresh")
    assert not integrations.set_refresh_needed(db, as_read, "token_expired", dt.date(2026, 3, 7))
    found = integrations.find(db, "page")
    assert found
    assert not found.refresh_needed


def test_every_token_is_rotated_or_none(db: Connection[Any]) -> None:
    """The old key is destroyed afterwards: one token left behind would be lost."""
    add(db, "org", "a", "EAAone")
    add(db, "org", "b", "EAAtwo")
    fresh = Vault.new_key()
    assert integrations.rotate_tokens(db, Vault([fresh, KEY])) == 2
    assert [Vault([fresh]).decrypt(page.token, page.id) for page in integrations.list_all(db)] == ["EAAone", "EAAtwo"]

    db.execute("UPDATE integration SET token = %s WHERE id = 'b'", [VAULT.encrypt("EAAtwo", "b")])
    before = db.execute("SELECT id, token FROM integration ORDER BY id").fetchall()
    with pytest.raises(VaultError):
        integrations.rotate_tokens(db, Vault([Vault.new_key(), fresh]))
    assert db.execute("SELECT id, token FROM integration ORDER BY id").fetchall() == before
