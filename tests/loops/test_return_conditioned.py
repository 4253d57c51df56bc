"""Return-conditioned RL: what is asked, and under which prompt each response is learned."""

from __future__ import annotations

import pytest
from loops.loop_cases import make

import pyengine as pe
from pyengine.errors import ConfigError, RequestError
from pyengine.loops import ReturnConditioned
from pyengine.objectives import GRPO, NLL
from pyengine.preferences import Feedback

CHAT = [{"role": "user", "content": "And?"}]


class Alternate:
    """The even samples are good, the odd ones bad, the last of four has no reward."""

    name = "alternate"

    def __call__(self, groups):
        return Feedback.from_rewards(
            [[None if k == 3 else float(k % 2 == 0) for k in range(len(g.responses))]
             for g in groups]
        )  # fmt: skip


def test_each_response_is_learned_under_what_it_was(tiny_model):
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", reference="none")
    seen = []
    update = engine.update
    engine.update = lambda batch, objective: (seen.append(batch), update(batch, objective))[1]
    loop = ReturnConditioned(
        engine, ["Say", CHAT], Alternate(), NLL(), pe.SamplingParams(n=4, max_tokens=4, seed=1),
        good=" (+)", bad=" (-)", eval_prompts=["What"],
    )  # fmt: skip
    report = loop.run_round()
    (batch,) = seen
    by_prompt = {str(g.prompt): g for g in batch.groups}
    assert set(by_prompt) == {
        "Say (+)", "Say (-)",
        str([{"role": "user", "content": "And? (+)"}]),
        str([{"role": "user", "content": "And? (-)"}]),
    }  # fmt: skip
    asked = {str(g.prompt): g for g in loop.last_groups}
    good, bad, drawn = (by_prompt["Say (+)"], by_prompt["Say (-)"], asked["Say (+)"].responses)
    assert [r.token_ids for r in good.responses] == [drawn[k].token_ids for k in (0, 2)]
    assert [r.token_ids for r in bad.responses] == [drawn[1].token_ids]
    assert bad.prompt_ids == engine.tokenizer.encode_prompt("Say (-)")
    assert bad.responses[0].logprobs is None is not good.responses[0].logprobs
    counts = [report[f"return_conditioned/{kind}"] for kind in ("good", "bad")]
    assert counts == [4, 2]
    assert loop.evaluate().groups[0].prompt == "What (+)"


def test_what_is_refused():
    for options, message in (
        ({"good": " "}, "good must be a text but is ' '"),
        ({"good": "x", "bad": "x"}, "good and bad must differ but are 'x'"),
        ({"above": float("nan")}, "above must be finite but is nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(ReturnConditioned, NLL(), **options)
    with pytest.raises(RequestError, match=r"prompts\[0\] must be a text or messages"):
        make(ReturnConditioned, NLL(), prompts=[[1, 2]], prompts_per_round=1)
    with pytest.raises(ConfigError, match=r"grpo does not fit .*logprobs, one a token"):
        make(ReturnConditioned, GRPO())
