"""The engine's settings, scoring, saving and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from models.tiny_models import hf_model
from tiny_batches import flat, group, preferences, random_ids, same_bits, shift, weights
from transformers import AutoModelForCausalLM

import pyengine as pe
from pyengine.engine.calls import scoring
from pyengine.errors import CheckpointError, ConfigError, RequestError

GROUPS = preferences().groups


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def oracle(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


# Settings


def test_what_an_engine_says_of_itself(make_engine):
    engine = make_engine(kv_tokens=100, micro_batch_tokens=48)
    assert engine.max_positions == 512
    assert engine.spec.num_layers == 2
    assert engine.dtype == torch.float32
    assert engine.device == torch.device("cpu")
    assert (engine.kv_tokens, engine.micro_batch_tokens) == (100, 48)
    assert (engine.step_count, engine.extra, engine.has_reference) == (0, {}, True)
    assert not make_engine(reference="none").has_reference


REFERENCE_RULE = (
    "'frozen', 'none', 'adapter', a model's path or the name of a snapshot in snapshot_folder"
)
DTYPE_RULE = "'auto', 'float32', 'bfloat16' or 'int8'"


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        *[("dtype", v, DTYPE_RULE) for v in ("float16", "fp32", None)],
        *[("reference", v, REFERENCE_RULE) for v in ("live", None, "", 5)],
        *[("gradient_checkpointing", v, "True, False or None") for v in (2, "yes")],
        *[("seed", v, "an integer of 64 bits") for v in (0.5, 2**63, None, True)],
        *[("kv_tokens", v, "an integer >= 1 or None") for v in (0, -1, 1.5)],
        *[("micro_batch_tokens", v, "an integer >= 1 or None") for v in (0, 2.0, "48")],
    ],
)
def test_settings_name_field_and_value(make_engine, field, value, rule):
    with pytest.raises(ConfigError) as caught:
        make_engine(**{field: value})
    assert str(caught.value) == f"[Engine] {field} must be {rule} but is {value!r}"


def test_optimizer_settings_are_checked(make_engine):
    with pytest.raises(ConfigError, match=r"^\[optimizer\] learning_rate must be finite and >= 0"):
        make_engine(learning_rate=-1.0)


@pytest.mark.parametrize("device", ["tpu", "meta", "", None, "cpu:x"])
def test_an_unknown_device_is_refused(make_engine, device):
    with pytest.raises(ConfigError) as caught:
        make_engine(device=device)
    assert str(caught.value) == f"[Engine] device must be 'cpu' or 'cuda' but is {device!r}"


def test_a_gpu_that_is_not_there_is_refused(make_engine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        make_engine(device="cuda")
    assert str(caught.value) == "[Engine] device is 'cuda' but torch sees no GPU"


def test_a_gpu_without_kernels_is_refused(make_engine, monkeypatch):
    from pyengine.engine import config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(config._C, "cuda_built", False)
    with pytest.raises(ConfigError) as caught:
        make_engine(device="cuda")
    assert (
        str(caught.value)
        == "[Engine] device is 'cuda' but this pyengine was built without CUDA kernels"
    )


def test_auto_dtype_is_bfloat16_where_the_cpu_has_it(make_engine, monkeypatch):
    from pyengine.engine import config

    for isa, dtype in (("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)):
        monkeypatch.setattr(config, "isa", lambda isa=isa: isa)
        assert make_engine(dtype="auto").dtype == dtype


# Scoring


def test_scores_equal_transformers(engine, tiny_model):
    model = oracle(tiny_model)
    for made, row in zip(GROUPS, engine.score(GROUPS), strict=True):
        P = len(made.prompt_ids)
        for response, score in zip(made.responses, row, strict=True):
            ids = made.prompt_ids + response.token_ids
            logps = logits(model, ids).log_softmax(-1)[P - 1 : -1]
            expected = logps.gather(1, torch.tensor(ids[P:])[:, None])[:, 0]
            torch.testing.assert_close(score.token_logprobs, expected, rtol=0, atol=1e-5)


def test_ids_of_numpy_and_torch_are_those_of_lists(engine):
    ids = random_ids(6, seed=3)
    params = pe.SamplingParams(max_tokens=4)
    [listed] = engine.generate([ids], params)
    for given in (np.array(ids, dtype=np.int32), torch.tensor(ids), [np.int64(i) for i in ids]):
        [group] = engine.generate([given], params)
        assert group == listed
        assert {type(t) for t in group.prompt_ids} == {int}
        response = pe.Response(np.array(listed.responses[0].token_ids))
        scored, own = (engine.score([each])[0][0] for each in (pe.Group(given, [response]), listed))
        assert torch.equal(scored.token_logprobs, own.token_logprobs)


def test_reference_is_the_policy_before_updates_and_stays(make_engine):
    engine = make_engine(learning_rate=0.01)
    before = engine.score(GROUPS)
    engine.update(preferences(), pe.objectives.DPO())
    reference, policy = engine.score(GROUPS, model="reference"), engine.score(GROUPS)
    for g, row in enumerate(before):
        for k, score in enumerate(row):
            assert torch.equal(reference[g][k].token_logprobs, score.token_logprobs)
            assert not torch.equal(policy[g][k].token_logprobs, score.token_logprobs)


def test_scores_in_parts_equal_those_of_one_pass(engine, make_engine):
    for one, other in zip(
        engine.score(GROUPS), make_engine(micro_batch_tokens=1).score(GROUPS), strict=True
    ):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a.token_logprobs, b.token_logprobs, rtol=0, atol=2e-6)


def test_score_of_nothing(engine):
    assert engine.score([]) == []
    [[]] = engine.score([pe.Group([1, 2])])
    [[score]] = engine.score([pe.Group([1, 2], [pe.Response([])])])
    assert score.token_logprobs.tolist() == []
    assert score.logprob == 0.0


def test_score_reports_progress(make_engine, monkeypatch):
    seen = []
    monkeypatch.setattr(scoring, "STEP_SECONDS", 0.0)
    make_engine().score(GROUPS, progress=lambda *c: seen.append(c))
    assert seen[-1] == (4, 4)
    assert len(seen) > 1
    assert seen == sorted(seen)


def test_score_takes_no_gradients(engine):
    [[score, _]] = engine.score([GROUPS[0]])
    assert not score.token_logprobs.requires_grad


@pytest.mark.parametrize(
    ("made", "model", "message"),
    [
        (GROUPS[0], "judge", "model must be 'policy' or 'reference' but is 'judge'"),
        (
            GROUPS[0],
            "reference",
            "model 'reference' was asked for but the engine has none (reference='none')",
        ),
        (pe.Group([], [pe.Response([1])]), "policy", "groups[1].prompt_ids must not be empty"),
        (
            pe.Group([1], [pe.Response([259])]),
            "policy",
            "groups[1].responses[0].token_ids must hold integers in [0, 259) "
            "but responses[0].token_ids[0] = 259",
        ),
        (
            pe.Group([1], [pe.Response([1] * 512)]),
            "policy",
            "groups[1] must fit 512 positions but prompt (1 tokens) and responses[0] (512) "
            "have 513",
        ),
    ],
)
def test_score_names_what_it_refuses(make_engine, made, model, message):
    with pytest.raises(RequestError) as caught:
        make_engine(reference="none").score([GROUPS[0], made], model=model)
    assert str(caught.value) == f"[score] {message}"


# bfloat16


def test_bfloat16_scores_are_near_float32_and_margins_start_at_zero(engine, make_engine):
    half = make_engine(dtype="bfloat16", learning_rate=0.01)
    exact = torch.cat([s.token_logprobs for row in engine.score(GROUPS) for s in row])
    before = torch.cat([s.token_logprobs for row in half.score(GROUPS) for s in row])
    assert (before - exact).abs().max() < 0.1
    assert not torch.equal(before, exact)
    metrics = half.update(preferences(), pe.objectives.DPO())
    assert metrics["rewards/margins"] == 0.0
    assert metrics["loss"] == pytest.approx(math.log(2), rel=2**-24)
    after = torch.cat([s.token_logprobs for row in half.score(GROUPS) for s in row])
    assert (after - before).abs().max() > 0.1


def test_bfloat16_scores_and_samples_follow_an_update(make_engine, tmp_path):
    """After an update the engine computes what a fresh one computes from the same weights."""
    half = make_engine(dtype="bfloat16", learning_rate=0.01)
    half.score(GROUPS)
    for _ in range(2):
        half.update(preferences(), pe.objectives.DPO())
    half.save_pretrained(tmp_path / "model")
    fresh = pe.Engine.from_pretrained(tmp_path / "model", dtype="bfloat16")
    for one, other in zip(half.score(GROUPS), fresh.score(GROUPS), strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.token_logprobs, b.token_logprobs)
    params = pe.SamplingParams(max_tokens=8)
    assert half.generate([[5, 6]], params) == fresh.generate([[5, 6]], params)


def test_bfloat16_samples_have_the_scorers_log_probs(make_engine):
    half = make_engine(dtype="bfloat16")
    groups = half.generate([random_ids(6, seed=1)], pe.SamplingParams(n=4, max_tokens=8))
    for response, score in zip(groups[0].responses, half.score(groups)[0], strict=True):
        torch.testing.assert_close(
            torch.tensor(response.logprobs), score.token_logprobs, rtol=0, atol=0.05
        )


# Saving


def test_a_saved_model_has_identical_logits_in_transformers(make_engine, tiny_model, tmp_path):
    engine = make_engine(learning_rate=0.01)
    ids = random_ids(40, seed=5)
    engine.save_pretrained(tmp_path / "start")
    original = oracle(tiny_model)
    assert torch.equal(logits(oracle(tmp_path / "start"), ids), logits(original, ids))
    engine.update(preferences(), pe.objectives.DPO())
    engine.save_pretrained(tmp_path / "trained")
    original.load_state_dict(dict(engine.named_weights()), strict=False)
    trained = oracle(tmp_path / "trained")
    assert torch.equal(logits(trained, ids), logits(original, ids))
    assert not torch.equal(logits(trained, ids), logits(oracle(tiny_model), ids))


def test_a_saved_model_loads_again_bit_for_bit(make_engine, tmp_path):
    engine = make_engine()
    shift(engine)
    engine.save_pretrained(tmp_path / "model")
    again = pe.Engine.from_pretrained(tmp_path / "model", dtype="float32")
    assert same_bits(weights(again), weights(engine))
    assert again.tokenizer.encode("Hi there") == engine.tokenizer.encode("Hi there")
    chat = [{"role": "user", "content": "Hi"}]
    assert again.tokenizer.encode_chat(chat) == engine.tokenizer.encode_chat(chat)


def test_saving_twice_replaces_the_model(engine, tmp_path):
    engine.save_pretrained(tmp_path / "model")
    shift(engine)
    engine.save_pretrained(tmp_path / "model")
    again = pe.Engine.from_pretrained(tmp_path / "model", dtype="float32")
    assert same_bits(weights(again), weights(engine))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_saving_does_not_delete_what_is_not_a_model(engine, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        engine.save_pretrained(tmp_path)
    assert "must be empty or a saved model but holds notes.txt" in str(caught.value)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    engine.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "model.safetensors").exists()


def test_a_model_that_is_not_finite_is_not_saved(engine, tmp_path):
    with torch.no_grad():
        engine._network.decoder.final_norm.weight[3] = math.nan
    with pytest.raises(CheckpointError) as caught:
        engine.save_pretrained(tmp_path / "model")
    assert str(caught.value) == "[save] weights must be finite but model.norm.weight is not"
    assert list(tmp_path.iterdir()) == []


def test_gpt2_scores_trains_and_saves(tmp_path):
    """Learned positions, Conv1D weights, one tensor for q, k and v, no tokenizer."""
    model = hf_model("gpt2")
    model.save_pretrained(tmp_path / "theirs")
    engine = pe.Engine.from_pretrained(tmp_path / "theirs", dtype="float32", learning_rate=0.01)
    batch = preferences(vocab_size=97)
    [[score, *_], *_] = engine.score(batch.groups)
    made = batch.groups[0]
    ids = made.prompt_ids + made.responses[0].token_ids
    P = len(made.prompt_ids)
    expected = logits(model, ids).log_softmax(-1)[P - 1 : -1]
    expected = expected.gather(1, torch.tensor(ids[P:])[:, None])[:, 0]
    torch.testing.assert_close(score.token_logprobs, expected, rtol=0, atol=2e-5)
    first = engine.update(batch, pe.objectives.DPO())
    assert first["rewards/margins"] == 0.0
    assert engine.update(batch, pe.objectives.DPO())["loss"] < first["loss"]
    engine.save_pretrained(tmp_path / "ours")
    model.load_state_dict(dict(engine.named_weights()), strict=False)
    assert torch.equal(logits(oracle(tmp_path / "ours"), ids), logits(model, ids))


def test_weights_have_transformers_names_and_values(engine, tiny_model):
    theirs = {n: p.detach() for n, p in oracle(tiny_model).named_parameters()}
    assert same_bits(weights(engine), theirs)
    assert len(flat(theirs)) == sum(p.numel() for p in engine._network.decoder.parameters())


def test_a_prompt_alone_that_is_too_long_is_refused(engine):
    with pytest.raises(RequestError) as caught:
        engine.score([pe.Group(random_ids(513, seed=0))])
    assert str(caught.value) == (
        "[score] groups[0].prompt_ids must fit 512 positions but has 513 tokens"
    )


def test_groups_of_eight_responses_share_their_prompt(engine):
    made = group(20, [3, 5, 7, 2, 1, 4, 6, 8], seed=9)
    scores = engine.score([made])[0]
    for response, score in zip(made.responses, scores, strict=True):
        [[alone]] = engine.score([pe.Group(made.prompt_ids, [response])])
        torch.testing.assert_close(score.token_logprobs, alone.token_logprobs, rtol=0, atol=2e-6)


# Weights of 8 bits


def test_int8_samples_and_scores_the_same_bits_and_is_near_bfloat16(make_engine):
    engine = make_engine(dtype="int8")
    params = pe.SamplingParams(n=2, max_tokens=12, ignore_eos=True)
    groups = engine.generate([[5, 6, 7], [8] * 40], params)
    nearby = make_engine(dtype="bfloat16").score(groups)
    for sampled, row, near in zip(groups, engine.score(groups), nearby, strict=True):
        for response, score, other in zip(sampled.responses, row, near, strict=True):
            assert response.logprobs == score.token_logprobs.tolist()
            # 127ths of a row's largest weight: a weight is off by 0.2 % of its row's largest.
            difference = (score.token_logprobs - other.token_logprobs).abs()
            assert 0 < difference.max() < 0.05


def test_int8_does_not_train_and_does_not_save(make_engine, tmp_path):
    engine = make_engine(dtype="int8")
    for call in (
        lambda: engine.update(preferences(), pe.objectives.DPO()),
        lambda: engine.save_pretrained(tmp_path / "model"),
        lambda: engine.save_checkpoint(tmp_path / "checkpoint"),
    ):
        with pytest.raises(RequestError, match=r"an engine of dtype 'int8' only samples and scor"):
            call()
    assert list(tmp_path.iterdir()) == []
