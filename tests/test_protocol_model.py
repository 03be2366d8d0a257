"""The protocol keeps its promises in every interleaving, and the search finds each way of weakening it."""

from __future__ import annotations

import pytest

from tests.protocol_model import WEAKNESSES, search


@pytest.mark.parametrize(
    ("ids", "faults"),
    [
        pytest.param(("a",), 2, id="one job, two faults"),
        pytest.param(("a",), 3, id="one job, three faults", marks=pytest.mark.slow),
        pytest.param(("a", "b"), 1, id="two jobs, one fault", marks=pytest.mark.slow),
    ],
)
def test_no_interleaving_of_two_workers_and_a_reaper_breaks_a_promise(ids: tuple[str, ...], faults: int) -> None:
    """Every state that can be reached was looked at: this is a proof for its size, not a sample."""
    found = search(ids, faults)
    assert not found.violation, found.way
    assert found.states > 1000


@pytest.mark.parametrize("weak", WEAKNESSES)
def test_every_weakness_is_found(weak: str) -> None:
    """A search that finds nothing in a broken protocol would prove nothing about the whole one."""
    found = search(("a",), 2, weak)
    assert found.violation
    assert found.way
