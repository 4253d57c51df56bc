"""Hidden states and gradient norms of responses: values, and that nothing is changed by them."""

from __future__ import annotations

import pytest
import torch
from tiny_batches import flat, gradients, group, moments, preferences, same_bits, shift, weights
from transformers import AutoModel

import pyengine as pe
from pyengine.errors import RequestError
from pyengine.objectives import DPO, NLL

GROUPS = [group(7, [5, 9, 0], 1), group(3, [4], 2)]


def one_by_one(engine: pe.Engine, per_token: bool) -> list[list[float]]:
    """The gradient of each response's loss alone, by an update that is not applied."""
    objective = NLL(average="example" if per_token else "sum")
    norms = []
    for each in GROUPS:
        row = []
        for response in each.responses:
            if not response.token_ids:
                row.append(0.0)
                continue
            alone = pe.Preferences([pe.Group(each.prompt_ids, [response])])
            engine.forward_backward(alone, objective)
            row.append(float(flat(gradients(engine)).norm()))
            engine._network.drop_gradients()
        norms.append(row)
    return norms


@pytest.mark.parametrize("options", [{}, {"lora": pe.LoraConfig(r=2)}])
@pytest.mark.parametrize("per_token", [True, False])
def test_norms_are_those_of_each_response_s_gradient(make_engine, options, per_token):
    engine = make_engine(**options)
    shift(engine)
    found = engine.gradient_norms(GROUPS, per_token=per_token)
    for ours, theirs in zip(found, one_by_one(engine, per_token), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert found[0][2] == 0.0
    assert engine.gradient_norms(GROUPS[1:], per_token=per_token) == found[1:]  # to the bit


def test_nothing_is_changed_by_a_reading(trained, make_engine):
    params = pe.SamplingParams(n=2, max_tokens=5, seed=4)
    before = weights(trained), moments(trained), trained.step_count
    sampled = trained.generate([[5, 6]], params)
    trained.gradient_norms(GROUPS)
    trained.hidden_states(GROUPS, pool="mean")
    assert gradients(trained) == {}
    after = weights(trained), moments(trained), trained.step_count
    assert all(same_bits(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    assert before[2] == after[2]
    assert trained.generate([[5, 6]], params) == sampled
    other = make_engine(learning_rate=0.01)
    other.update(preferences(), DPO())
    for engine in (trained, other):
        engine.update(preferences(), DPO())
    assert same_bits(weights(trained), weights(other))


def test_norms_are_refused_between_gradient_and_step(engine):
    engine.forward_backward(preferences(), DPO())
    kept = gradients(engine)
    with pytest.raises(RequestError, match=r"\[gradient_norms\] there are gradients that no step"):
        engine.gradient_norms(GROUPS)
    assert same_bits(gradients(engine), kept)
    engine.step()
    with pytest.raises(RequestError, match=r"\[gradient_norms\] groups\[0\].prompt_ids must not"):
        engine.gradient_norms([pe.Group([], [])])


def test_hidden_states_are_transformers(tiny_model, engine):
    """After the final norm; of the last token, the mean over the response's tokens, all tokens."""
    model = AutoModel.from_pretrained(tiny_model, dtype=torch.float32).eval()
    last, mean = engine.hidden_states(GROUPS), engine.hidden_states(GROUPS, pool="mean")
    tokens = engine.hidden_states(GROUPS, pool="tokens")
    for g, each in enumerate(GROUPS):
        for k, response in enumerate(each.responses):
            if not response.token_ids:
                assert last[g][k] is None
                assert mean[g][k] is None
                assert tokens[g][k] is None
                continue
            with torch.no_grad():
                ids = torch.tensor([each.prompt_ids + response.token_ids])
                states = model(ids).last_hidden_state[0, len(each.prompt_ids) :]
            torch.testing.assert_close(last[g][k], states[-1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(mean[g][k], states.mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(tokens[g][k], states, rtol=1e-4, atol=1e-5)
            assert torch.equal(tokens[g][k][-1], last[g][k])
    [[alone]] = engine.hidden_states(GROUPS[1:], pool="mean")
    assert torch.equal(alone, mean[1][0])


def test_hidden_states_of_other_models(engine):
    [[first]] = engine.hidden_states(GROUPS[1:])
    engine.snapshot("before")
    shift(engine)
    [[now]] = engine.hidden_states(GROUPS[1:])
    assert not torch.equal(now, first)
    for model in ("reference", "before"):
        [[state]] = pe.asking(engine, model).hidden_states(GROUPS[1:])
        assert torch.equal(state, first)
    with pytest.raises(RequestError, match=r"\[hidden_states\] model must be 'policy', 'refer"):
        engine.hidden_states(GROUPS, model="later")
    with pytest.raises(RequestError, match="pool must be one of last, mean, tokens but is 'sum'"):
        engine.hidden_states(GROUPS, pool="sum")
