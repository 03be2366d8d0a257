"""The database's clock decides in the jobs. While a host and the database disagree, nothing is judged for good."""

from __future__ import annotations

import ast
import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from jobs import payloads
from jobs.aggregate import Aggregate
from jobs.clock import DatabaseClock, host_time
from jobs.ingest import Ingest
from jobs.plan import Plan, Reconcile
from jobs.providers.base import Gate
from redisq import Defer
from tests.pages import DAY, World, a_delivery, a_world

PROJECT = Path(__file__).resolve().parents[1]
HOUR, YEAR = dt.timedelta(hours=1), dt.timedelta(days=365)
STEPS = pytest.mark.parametrize("wrong", [HOUR, -HOUR, 3 * YEAR, -3 * YEAR], ids=["+1h", "-1h", "+3y", "-3y"])


@pytest.fixture
def world(database: str, redis: Redis) -> Iterator[World]:
    with a_world(database, redis) as world:
        world.connect("org", "page")
        yield world


def on_a_host(world: World, wrong: dt.timedelta) -> DatabaseClock:
    """Make the handlers those of a host whose own clock is `wrong`, and return their clock."""
    clock = DatabaseClock(world.pool, host=lambda: host_time() + wrong)
    providers = {"facebook": world.provider}
    world.ingests = Ingest(world.pool, world.vault, providers, world.fan_in, clock, max_age_days=730, doubt=clock.doubt)
    world.aggregates = Aggregate(world.pool, clock, doubt=clock.doubt)
    world.plans = Plan(world.pool, world.queue, world.kinds, world.fan_in, clock=clock)
    world.reconciles = Reconcile(
        *(world.pool, world.plans, world.fan_in, clock),
        deadline=dt.timedelta(hours=12),
        max_age_days=730,
        doubt=clock.doubt,
    )
    return clock


@STEPS
def test_every_host_goes_by_the_clock_of_the_database(world: World, wrong: dt.timedelta) -> None:
    """One that is wrong tells the time all the same, and says so."""
    clock = on_a_host(world, wrong)
    assert abs(clock() - host_time()) < dt.timedelta(minutes=4)
    assert "set the one that is wrong" in clock.doubt()
    assert on_a_host(world, dt.timedelta(seconds=90)).doubt() == ""


@STEPS
def test_a_gate_is_closed_for_as_long_as_the_provider_asked_whatever_the_host_says(
    world: World, wrong: dt.timedelta
) -> None:
    """A worker whose clock was an hour fast closed the gate of the whole app for 65 minutes instead of five."""
    on_a_host(world, wrong)
    world.provider.gates = (Gate("app", "", 300.0, 100.0, "a test"),)
    world.ingest("org", "page")
    [(seconds,)] = world.db.execute(
        "SELECT extract(epoch FROM max(blocked_until) - clock_timestamp()) FROM provider_gate"
    ).fetchall()
    assert 60 < seconds <= 301


@STEPS
def test_no_day_is_given_up_as_too_old_while_the_clocks_disagree(world: World, wrong: dt.timedelta) -> None:
    """The database's may be the one that is wrong."""
    old = host_time().date() - dt.timedelta(days=740)
    on_a_host(world, wrong)
    with pytest.raises(Defer, match="clocks_disagree"):
        world.ingest("org", "page", old)
    assert world.fetch("SELECT state, reason FROM ingest_day_state") == [("expected", "clocks_disagree")]


@STEPS
def test_no_sum_becomes_final_while_the_clocks_disagree(world: World, wrong: dt.timedelta) -> None:
    """It does once they agree."""
    world.provider.answers["page", DAY] = dict.fromkeys(world.fetch("SELECT metric FROM metric_catalog"), 7)
    world.ingest("org", "page")
    on_a_host(world, wrong)
    world.aggregate("org")
    assert world.fetch("SELECT DISTINCT is_final FROM org_metric_daily") == [False]
    on_a_host(world, dt.timedelta())
    world.reconciles.reconcile()
    world.aggregate("org")
    assert world.fetch("SELECT DISTINCT is_final FROM org_metric_daily") == [True]


@STEPS
def test_no_day_counts_as_forgotten_while_the_clocks_disagree(world: World, wrong: dt.timedelta) -> None:
    """A plan of the wrong days would be made."""
    on_a_host(world, wrong)
    world.db.execute("UPDATE integration SET created_at = now() - interval '30 days'")
    assert world.reconciles.plan_forgotten() == []


def test_a_plan_of_a_day_that_has_not_begun_is_put_off(world: World) -> None:
    """A clock of Redis that is ahead fires slots of days to come. Then the job waits, and is no dead letter."""
    on_a_host(world, dt.timedelta())
    payload = payloads.Plan("2999-01-01")
    with pytest.raises(Defer, match="not_begun"):
        world.plans(payload, a_delivery(world.kinds["ingest"].job(payloads.Ingest("org", "page", "2026-03-07"))))
    assert world.fetch("SELECT count(*) FROM ingest_day_state") == [0]


HANDLERS = ("ingest", "plan", "aggregate", "incidents", "ledger", "integrations", "metric_life", "app", "payloads")


@pytest.mark.parametrize("name", HANDLERS)
def test_no_handler_asks_its_host_for_the_time(name: str) -> None:
    """A host that is wrong would decide for all."""
    source = (PROJECT / "jobs" / f"{name}.py").read_text()
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    assert not {call for call in calls if call.endswith(("datetime.now", "date.today", "time.time", "utcnow"))}
