"""The future is learned, sampled and gone back from; the past is the first policy."""

from __future__ import annotations

import json

from loops.loop_cases import make, named

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.loops import Iterative, Temporal, overlap
from pyengine.objectives import DPO
from pyengine.preferences.pairings.against_snapshot import AgainstSnapshot

PAIRING = AgainstSnapshot(chosen=("policy", "future"), rejected=("past",))


def temporal(engine=None, **changes):
    return make(Temporal, DPO(), engine, pairing=PAIRING, **changes)


def test_a_round_learns_for_a_while_and_goes_back():
    loop = temporal()
    report = loop.run_round()
    engine = loop.engine
    assert [call[0] for call in engine.calls] == [
        "snapshot", "reference", "snapshot",  # iterate-0, the reference, and the first policy
        "generate", "generate", "update", "generate", "load", "update",
    ]  # fmt: skip
    assert named(engine, "generate") == [(None,), ({"base": 1.0},), (None,)]
    assert named(engine, "load") == [("iterate-0", "reset")]
    origins = ["policy"] * 4 + ["past"] * 4 + ["future"] * 4
    assert all([r.origin for r in g.responses] == origins for g in loop.last_groups)
    assert (report["updates"], report["temporal/updates_gone_back"]) == (1, 1)
    provisional, final = engine.updates
    assert {len(g.responses) for g in provisional.groups} == {8}
    chosen = [final.groups[c.group].responses[c.winner].origin for c in final.comparisons]
    rejected = {final.groups[c.group].responses[c.loser].origin for c in final.comparisons}
    assert (rejected, report["temporal/chosen_future"]) == ({"past"}, chosen.count("future"))
    assert loop.most_updates == 2
    assert len(set(engine.request_ids)) == 9


def test_the_past_stays_the_first_policy_and_rounds_resume_alike():
    whole, first = temporal(batch_size=2), temporal(batch_size=2)
    list(whole.run(3))
    list(first.run(1))
    state = json.loads(json.dumps(first.state_dict()))
    rest = temporal(first.engine, batch_size=2)
    rest.load_state_dict(state)
    list(rest.run(2))
    assert rest.engine.weight == whole.engine.weight
    assert whole.engine.kept["base"] == 0.0
    assert [n for n in whole.engine.snapshots if n != "base"] == ["iterate-2"]


def test_a_round_that_learns_while_it_samples_is_not_sampled_in_slices(monkeypatch):
    monkeypatch.setattr(overlap, "overlaps", lambda *_: True)
    many = SamplingParams(n=64, max_tokens=6)
    assert overlap.overlap(temporal(sampling=many), 3)._slices == 1
    assert overlap.overlap(make(Iterative, DPO(), sampling=many), 3)._slices == 3
