"""Named snapshots: their bits, and where their names stand."""

from __future__ import annotations

import pytest
import torch
from engine.torch_path.test_torch_inference import LOGPROB_ATOL
from models.tiny_models import hf_model
from snapshot_engines import (
    BOTH,
    EACH,
    GROUPS,
    LORA,
    file_of,
    learned,
    move,
    options,
    scored,
)
from tiny_batches import flat, moments, preferences, random_ids, same_bits, trees_of, weights

import pyengine as pe
from pyengine.engine.infer.inference import TorchInference
from pyengine.engine.learn.learning import TorchLearner
from pyengine.engine.learn.logprob_cache import LogprobCache
from pyengine.engine.named.named_models import NamedModels
from pyengine.errors import ConfigError, RequestError
from pyengine.objectives import DPO

# Bits


@BOTH
@EACH
def test_a_snapshot_scores_as_the_policy_did(make_engine, dtype, lora):
    engine = make_engine(**options(dtype, lora))
    move(engine)
    before = scored(engine)
    engine.snapshot("iter1")
    engine.update(preferences(), DPO())
    assert not torch.equal(scored(engine), before)
    assert torch.equal(scored(engine, "iter1"), before)
    assert torch.equal(learned(engine, "iter1"), before)
    assert engine.snapshots == ["iter1"]


@BOTH
def test_the_learner_packs_in_passing_what_the_sampler_keeps(make_engine, lora):
    """Either of them first: the same log-probs, and those of the policy are as they were."""
    engine = make_engine(**options("bfloat16", lora))
    move(engine)
    before = scored(engine)
    engine.snapshot("a")
    assert torch.equal(learned(engine, "a"), before)
    move(engine, seed=1)
    after = scored(engine)
    assert torch.equal(scored(engine, "a"), before)
    engine.snapshot("b")
    assert torch.equal(learned(engine, "b"), after)
    engine.update(preferences(), DPO())
    assert torch.equal(learned(engine, "a"), before)


@BOTH
@EACH
def test_margins_are_zero_where_the_reference_is_the_policy_of_now(make_engine, dtype, lora):
    engine = make_engine(**options(dtype, lora))
    move(engine)
    assert engine.forward_backward(preferences(), DPO())["rewards/margins"] != 0
    engine.step()
    engine.snapshot("now")
    engine.set_reference("now")
    metrics = engine.update(preferences(), DPO())
    assert metrics["rewards/margins"] == metrics["rewards/chosen"] == 0.0
    assert engine.update(preferences(), DPO())["rewards/margins"] != 0
    assert torch.equal(scored(engine, "reference"), scored(engine, "now"))


def test_log_probs_of_references_are_never_mixed_up(make_engine, tmp_path):
    for cache in (None, tmp_path / "cache"):
        engine = make_engine(reference_cache=cache)
        expected = [scored(engine, "reference")]
        assert torch.equal(learned(engine, "reference"), expected[0])
        for seed, name in enumerate(("a", "b")):
            move(engine, seed)
            engine.snapshot(name)
            engine.set_reference(name)
            expected.append(scored(engine))
            assert torch.equal(learned(engine, "reference"), expected[-1])
            assert torch.equal(learned(engine, name), expected[-1])
        assert torch.equal(learned(engine, "a"), expected[1])
        move(engine, seed=7)
        engine.snapshot("b", overwrite=True)
        assert torch.equal(learned(engine, "reference"), scored(engine))
        assert torch.equal(scored(engine, "reference"), scored(engine))


def test_what_was_asked_of_a_snapshot_is_not_computed_again(make_engine, monkeypatch):
    engine = make_engine()
    engine.snapshot("a")
    first = learned(engine, "a")
    engine._iterates._models.forget("a")
    assert torch.equal(learned(engine, "a"), first)
    assert engine._iterates._models.held == []  # found in the cache: nothing was loaded


# Sampling


@BOTH
def test_mixtures_with_snapshots_have_each_models_log_probs(make_engine, lora):
    engine = make_engine(**options("bfloat16", lora))
    for seed, name in enumerate(("a", "b")):
        move(engine, seed)
        engine.snapshot(name)
    move(engine, seed=5)
    params = pe.SamplingParams(n=2, max_tokens=8)
    for mix in (
        {"policy": 1.3, "a": -0.3},
        {"a": 0.5, "reference": 0.7, "b": -0.2},
        {"b": 1.3, "a": -0.3},
    ):
        groups = engine.generate([random_ids(5, seed=1), [4]], params, models=mix)
        for name in mix:
            for group, row in zip(groups, engine.score(groups, model=name), strict=True):
                for r, score in zip(group.responses, row, strict=True):
                    assert r.model_logprobs[name] == score.token_logprobs.tolist()
    engine.set_reference("a")  # two names of one model
    groups = engine.generate([[4]], params, models={"a": 0.5, "reference": 0.5})
    for r in groups[0].responses:
        assert r.model_logprobs["a"] == r.model_logprobs["reference"]
        assert r.sampling_logprobs == pytest.approx(r.model_logprobs["a"], abs=1e-4)
    with pytest.raises(RequestError, match=r"^\[generate\] models must be at most 3 but are 4"):
        engine.generate([[4]], models=dict.fromkeys(("policy", "reference", "a", "b"), 0.25))


def test_a_snapshot_samples_as_the_policy_did(engine):
    prompts = [random_ids(70, seed=3)]  # whole pages, which a later call finds again
    params = pe.SamplingParams(n=3, max_tokens=12)
    before = engine.generate(prompts, params)
    engine.snapshot("a")
    move(engine)
    sampled = engine.generate(prompts, params, models={"a": 1.0})
    assert [r.token_ids for r in sampled[0].responses] == [r.token_ids for r in before[0].responses]
    engine.snapshot("a", overwrite=True)  # the same session, of other weights
    after = engine.generate(prompts, params, models={"a": 1.0})
    assert [r.logprobs for r in after[0].responses] == [
        r.logprobs for r in engine.generate(prompts, params)[0].responses
    ]


# Algebra


@EACH
def test_combinations_are_torchs_arithmetic_on_the_masters(make_engine, dtype):
    engine = make_engine(dtype=dtype)
    masters = {}
    for seed, name in enumerate(("old", "new", "policy")):
        move(engine, seed, size=1e-4)  # below what bfloat16 could tell apart
        masters[name] = {
            n: p.detach().clone() for n, p in engine._network.decoder.named_parameters()
        }
        if name != "policy":
            engine.snapshot(name)
    engine.combine({"new": 1.3, "old": -0.3}, name="apo")
    engine.average(["old", "new", "policy"], name="mean")
    engine.average(["old", "new"], name="weighted", weights=[3, 1])
    for name, mix in {
        "apo": {"new": 1.3, "old": -0.3},
        "mean": dict.fromkeys(("old", "new", "policy"), 1 / 3),
        "weighted": {"old": 0.75, "new": 0.25},
    }.items():
        found = file_of(engine, name)
        assert found.keys() == masters["policy"].keys()
        for each, tensor in found.items():
            parts = [masters[source][each] * c for source, c in mix.items()]
            assert torch.equal(tensor, sum(parts[1:], parts[0])), (name, each)
            exact = sum(masters[source][each].double() * c for source, c in mix.items())
            torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-8)
    engine.load_snapshot("apo")
    assert same_bits(file_of(engine, "apo"), dict(engine._network.decoder.named_parameters()))
    assert torch.equal(scored(engine), scored(engine, "apo"))


def test_an_average_that_moves(engine):
    """EMA: theta_ema = 0.9 theta_ema + 0.1 theta, as the reference."""
    engine.snapshot("ema")
    engine.set_reference("ema")
    expected = weights(engine)
    for seed in range(4):
        move(engine, seed)
        engine.combine({"ema": 0.9, "policy": 0.1}, name="ema", overwrite=True)
        expected = {n: w * 0.9 + weights(engine)[n] * 0.1 for n, w in expected.items()}
        seen = scored(engine, "reference")
    engine.load_snapshot("ema")
    assert same_bits(weights(engine), expected)
    assert torch.equal(scored(engine), seen)
    assert torch.equal(learned(engine, "reference"), seen)


@EACH
def test_combined_adapters_are_combined_products(make_engine, dtype, tmp_path):
    """sum of c (W + s B A), of which A and B each combined would be something else."""
    engine = make_engine(**options(dtype, True))
    merged = {}
    for seed, name in enumerate(("a", "b")):
        move(engine, seed)
        engine.snapshot(name)
        merged[name] = engine._network.lora.merged(engine._network.decoder)
    engine.combine({"b": 1.5, "a": -0.5}, name="c")
    engine.combine({"c": 0.25, "policy": 0.75}, name="d")
    weight = {"a": 0.25 * -0.5, "b": 0.25 * 1.5 + 0.75}  # the policy is b
    found = file_of(engine, "d")
    assert len(found) == 2 * 3
    for name, tensor in found.items():
        parts = [merged[source].get_parameter(name).double() * c for source, c in weight.items()]
        torch.testing.assert_close(tensor.double(), sum(parts), rtol=1e-5, atol=1e-6)
    engine.combine({"b": 1.0}, name="same")
    assert torch.equal(scored(engine, "same"), scored(engine))
    assert not torch.equal(scored(engine, "d"), scored(engine))
    engine.set_reference("d")
    assert torch.equal(learned(engine, "reference"), scored(engine, "d"))
    with pytest.raises(RequestError, match=r"^\[load_snapshot\] snapshot 'd' is a combination"):
        engine.load_snapshot("d")


@BOTH
@pytest.mark.parametrize("kept", ["keep", "reset"])
def test_loading_brings_the_policy_back(make_engine, lora, kept):
    engine = make_engine(**options("float32", lora), schedule="linear", total_steps=9)
    engine.update(preferences(), DPO())
    engine.snapshot("a")
    before, state, sampled = weights(engine), moments(engine), engine.generate([[5, 6]])
    engine.update(preferences(), DPO())
    second = moments(engine)
    engine.load_snapshot("a", moments=kept)
    assert same_bits(weights(engine), before)
    assert engine.generate([[5, 6]]) == sampled
    assert engine.step_count == 2
    assert not same_bits(state, second)
    if kept == "keep":
        assert same_bits(moments(engine), second)
    else:
        assert moments(engine) == {}
    assert engine.update(preferences(), DPO())["lr"] == pytest.approx(0.01 * 7 / 9)


def test_the_first_step_after_a_reset_is_adams_first(make_engine):
    """Bias correction begins again: a step of lr in each weight's direction, not of 3 lr."""
    engine = make_engine(learning_rate=0.001, max_grad_norm=None, eps=1e-12)
    for _ in range(3):
        engine.update(preferences(), DPO())
    engine.snapshot("a")
    engine.load_snapshot("a", moments="reset")
    before = flat(weights(engine))
    engine.update(preferences(), DPO())
    steps = (flat(weights(engine)) - before).abs()
    assert steps.max() == pytest.approx(0.001, rel=1e-3)


# References


def test_a_reference_where_there_was_none(make_engine):
    engine = make_engine(reference="none", learning_rate=0.01)
    assert not engine.has_reference
    assert not engine._learner.has_model("reference")
    engine.snapshot("start")
    engine.set_reference("start")
    assert engine.has_reference
    assert engine.update(preferences(), DPO())["rewards/margins"] == 0.0
    assert dict(engine.memory_plan().parts)["reference"] > 0


def test_both_learners_know_snapshots(make_engine):
    engine, cpu = make_engine(), torch.device("cpu")
    engine.snapshot("a")
    move(engine)
    expected = {name: scored(engine, name) for name in ("a", "reference")}
    named = NamedModels(engine._snapshots, engine._snapshots.load_decoder)
    policy, reference = engine._network.decoder, engine._reference.decoder
    learner = TorchLearner(policy, reference, LogprobCache(reference), cpu, named)
    decoders = {"policy": policy, "reference": reference}
    inference = TorchInference(decoders, cpu, 64, 64, None, frozenset(), named)
    trees = trees_of(GROUPS)
    for _ in range(2):
        for name, logps in expected.items():
            assert learner.has_model(name)
            for found in (
                torch.cat(learner.model_logps(name, trees)),
                torch.cat([s for row in inference.score(name, trees, None) for s in row]),
            ):
                torch.testing.assert_close(found, logps, rtol=0, atol=LOGPROB_ATOL)
        engine._snapshots.reference = "a"
        inference.drop_reference()
        learner.drop_reference()
        expected["reference"] = expected["a"]
    assert not learner.has_model("b")


def test_a_reference_may_be_another_model_or_a_snapshot(make_engine, tmp_path):
    teacher = make_engine(snapshot_folder=tmp_path / "s")
    move(teacher)
    teacher.save_pretrained(tmp_path / "teacher")
    teacher.snapshot("a")
    for lora in (None, LORA):
        engine = make_engine(reference=tmp_path / "teacher", learning_rate=0.01, lora=lora)
        assert engine.config.reference == "frozen"
        assert torch.equal(scored(engine, "reference"), scored(teacher))
        assert not torch.equal(scored(engine), scored(teacher))
        engine.update(preferences(), DPO())
        engine.save_checkpoint(tmp_path / "c")
        loaded = pe.Engine.load_checkpoint(tmp_path / "c")
        assert torch.equal(scored(loaded, "reference"), scored(teacher))
    engine = make_engine(reference="a", snapshot_folder=tmp_path / "s")
    assert engine.reference_snapshot == "a"
    assert torch.equal(scored(engine, "reference"), scored(teacher))
    assert torch.equal(learned(engine, "reference"), scored(teacher))
    engine.save_checkpoint(tmp_path / "c")
    assert pe.Engine.load_checkpoint(tmp_path / "c").reference_snapshot == "a"


def test_a_reference_of_another_shape_is_refused(make_engine, tmp_path):
    hf_model("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="must be a llama of the policy's shape and settings"):
        make_engine(reference=str(tmp_path / "gpt2"))
