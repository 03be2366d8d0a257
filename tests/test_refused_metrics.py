"""A metric that one page is refused is missing for that page only. Real workers read the pages and make the sums."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from jobs.simulator import Simulator
from tests.roles import as_services
from tests.system import system

VIEWS = "page_media_view"


@pytest.mark.slow
def test_one_refused_page_costs_no_other_page_a_number(redis_url: str, database: str, tmp_path: Path) -> None:
    """Pages that were read later used to lose the number, and the sums looked complete and final."""
    last = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=5)
    first = last - dt.timedelta(days=19)
    with (
        Simulator(pages=4) as simulator,
        system(redis_url, database, tmp_path, simulator, REDISQ_DATABASE_URL=as_services(database)) as installed,
    ):
        installed.connect_pages(lambda _: "acme")
        refused = simulator.pages[3].page_id
        simulator.script(refused, then=f"refuse:{VIEWS}")
        for _ in range(2):
            installed.start("worker", "--queue", "backfill")
        line = ("backfill", "--org", "acme", "--from", first.isoformat(), "--to", last.isoformat())
        assert installed.redisq(*line).returncode == 0
        installed.settle(queue="backfill")
        sums = installed.rows(
            "SELECT d.value = (SELECT sum(value) FROM page_metric_daily p WHERE p.day = d.day AND p.metric = d.metric),"
            " n_value, n_expected, completeness::text, value_coverage::text, is_final, missing, zone, count(*)"
            f" FROM org_metric_daily d WHERE metric = '{VIEWS}' GROUP BY 1, 2, 3, 4, 5, 6, 7, 8"
        )
        missing = [{"integrationId": f"acme-{refused}", "reason": "unsupported_here"}]
        assert sums == [(True, 3, 4, "0.7500", "0.7500", True, missing, "America/Los_Angeles", 20)]
        others = f"SELECT DISTINCT n_value, n_expected FROM org_metric_daily WHERE metric <> '{VIEWS}'"
        assert installed.rows(others) == [(4, 4)]
