"""That the places at which faults.py breaks a run are there: it runs by hand, and names change."""

from __future__ import annotations

import pytest
from ranks.faults import NAMED, Fault
from ranks.faulty import at


@pytest.mark.parametrize("fault", [f for f in NAMED if f.at], ids=lambda f: f.name)
def test_faults_have_a_place(fault: Fault) -> None:
    rank, kind, place, call = fault.at.split()
    owner, name = at(place)
    assert callable(getattr(owner, name))
    assert int(rank) < fault.size
    assert kind in ("kill", "stop", "full")
    assert int(call) > 0
