"""Reward functions: what f receives, and every way it can fail without training on the failure."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
import torch

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences import Group, Response, RewardFunction, RewardSum

CHAT = [{"role": "user", "content": "hi"}]


def groups():
    return [
        Group([1, 2], [Response([3], text="a"), Response([4, 5], text="bb")], "p", {"answer": "x"}),
        Group([6], [Response([7], text="ccc")], "q", {"answer": "y"}),
    ]


def length(completions):
    return [float(len(c)) for c in completions]


def test_rewards_in_the_shape_of_the_groups():
    feedback = RewardFunction(length)(groups())
    assert feedback.rewards == [[1.0, 2.0], [3.0]]
    assert feedback.status == [["value", "value"], ["value"]]
    assert feedback.components == {"length": [[1.0, 2.0], [3.0]]}
    assert feedback.errors == []
    assert feedback.valid_fraction == 1.0


def test_every_argument_of_kwargs():
    seen = {}

    def f(**kwargs):
        seen.update(kwargs)
        return [0] * len(kwargs["completions"])

    RewardFunction(f)(groups())
    assert seen == {
        "prompts": ["p", "p", "q"],
        "completions": ["a", "bb", "ccc"],
        "prompt_ids": [[1, 2], [1, 2], [6]],
        "completion_ids": [[3], [4, 5], [7]],
        "answer": ["x", "x", "y"],
    }


def test_only_named_arguments_are_passed():
    def f(completions, answer, *, prompts, other="default"):
        assert other == "default"
        return [float(p == "p" and a == "x") for p, a in zip(prompts, answer, strict=True)]

    assert RewardFunction(f)(groups()).rewards == [[1.0, 1.0], [0.0]]


def test_column_that_a_group_lacks_is_none():
    given = groups()
    del given[0].columns["answer"]
    feedback = RewardFunction(lambda completions, answer: [a and 1.0 for a in answer])(given)
    assert feedback.rewards == [[None, None], [1.0]]


def test_conversational_in_conversational_out():
    seen = {}

    def f(prompts, completions):
        seen.update(prompts=prompts, completions=completions)
        return [0.0]

    RewardFunction(f)([Group([1], [Response([2], text="yes")], CHAT)])
    assert seen["prompts"] == [CHAT]
    assert seen["completions"] == [[{"role": "assistant", "content": "yes"}]]


def test_prompt_of_ids():
    f = RewardFunction(lambda prompts, completions: [float(p == [1, 9]) for p in prompts])
    assert f([Group([1, 9], [Response([2], text="yes")])]).rewards == [[1.0]]


def test_token_ids_without_a_tokenizer():
    given = [Group([1], [Response([2, 3])])]
    f = RewardFunction(lambda completions, completion_ids: [len(ids) for ids in completion_ids])
    assert f(given).rewards == [[2.0]]
    message = r"\[length\] groups\[0\].responses\[0\].text must be a string but is None"
    with pytest.raises(RequestError, match=message):
        RewardFunction(length)(given)


def test_mutation_does_not_reach_the_groups_nor_the_sibling():
    def f(prompts, completions, tags):
        prompts[0][0]["content"] = "changed"
        tags[0].append("changed")
        assert prompts[1][0]["content"] == "hi"
        assert tags[1] == ["t"]
        completions.clear()
        return [1.0, 2.0]

    given = [Group([1], [Response([2], text="a"), Response([3], text="b")], CHAT, {"tags": ["t"]})]
    assert RewardFunction(f)(given).rewards == [[1.0, 2.0]]
    assert given[0].prompt == [{"role": "user", "content": "hi"}]
    assert given[0].columns == {"tags": ["t"]}


def test_async_function():
    async def f(completions):
        await asyncio.sleep(0.001)
        return length(completions)

    assert RewardFunction(f)(groups()).rewards == [[1.0, 2.0], [3.0]]


def test_async_callable_object_and_sync_function_that_returns_a_coroutine():
    class Judge:
        async def __call__(self, completions):
            return length(completions)

    judge = RewardFunction(Judge())
    assert judge.name == "Judge"
    assert judge(groups()).rewards == [[1.0, 2.0], [3.0]]
    wrapped = RewardFunction(lambda completions: Judge()(completions))
    assert wrapped(groups()).rewards == [[1.0, 2.0], [3.0]]


def test_names():
    assert RewardFunction(length).name == "length"
    assert RewardFunction(lambda completions: []).name == "reward"
    assert RewardFunction(length, name="mine")(groups()).components.keys() == {"mine"}


@pytest.mark.parametrize(
    "convert", [tuple, np.array, lambda x: np.array(x, "float32"), torch.tensor]
)
def test_containers_of_numbers(convert):
    f = RewardFunction(lambda completions: convert([1, 2.5, True]))
    assert f(groups()).rewards == [[1.0, 2.5], [1.0]]


def test_scalars_of_numpy_and_torch():
    f = RewardFunction(lambda completions: [np.float32(0.5), torch.tensor(2), np.bool_(True)])
    assert f(groups()).rewards == [[0.5, 2.0], [1.0]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "reward must be finite and within 1e38 but is nan (float)"),
        (float("-inf"), "reward must be finite and within 1e38 but is -inf (float)"),
        (1e39, "reward must be finite and within 1e38 but is 1e+39 (float)"),
        pytest.param(10**5000, "reward must be finite and within 1e38 but is a int", id="huge"),
        ("2.0", "reward must be a number or None but is '2.0' (str)"),
        ([1.0], "reward must be a number or None but is [1.0] (list)"),
        (1j, "reward must be a number or None but is 1j (complex)"),
        (torch.tensor(float("nan")), "reward must be finite and within 1e38 but is nan (float)"),
    ],
)
def test_bad_value_is_an_error_of_its_sample(value, message):
    feedback = RewardFunction(lambda completions: [1.0, value, None], name="f")(groups())
    assert feedback.rewards == [[1.0, None], [None]]
    assert feedback.status == [["value", "error"], ["abstain"]]
    assert feedback.errors == [f"[f] groups[0].responses[1]: {message}"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], "must return 3 rewards but returned 2"),
        ([1.0] * 4, "must return 3 rewards but returned 4"),
        (None, "must return a list of 3 numbers but returned None (NoneType)"),
        (1.0, "must return a list of 3 numbers but returned 1.0 (float)"),
        ("abc", "must return a list of 3 numbers but returned 'abc' (str)"),
        ({"a": 1}, "must return a list of 3 numbers but returned {'a': 1} (dict)"),
        (np.array(1.0), "must return a list of 3 numbers but returned array(1.) (ndarray)"),
    ],
)
def test_wrong_length_or_type_is_an_error_of_every_sample(result, message):
    calls = []
    feedback = RewardFunction(lambda completions: calls.append(1) or result)(groups())
    assert feedback.counts == {"value": 0, "abstain": 0, "error": 3}
    assert feedback.errors[0] == f"[reward] groups[0].responses[0]: {message}"
    assert len(calls) == 1


def test_exception_is_narrowed_to_its_sample():
    sizes = []

    def f(prompts, completions):
        sizes.append(len(completions))
        prompts[0] = "changed"
        assert prompts[1:] == ["p", "q"][: len(prompts) - 1]
        if "bb" in completions:
            raise ValueError("no  bb\nplease")
        return length(completions)

    feedback = RewardFunction(f)(groups())
    assert feedback.rewards == [[1.0, None], [3.0]]
    assert feedback.status == [["value", "error"], ["value"]]
    assert feedback.errors == [
        "[f] repeated one response at a time, as the call raised ValueError: no bb please",
        "[f] groups[0].responses[1]: ValueError: no bb please",
    ]
    assert sizes == [3, 1, 1, 1]


def test_single_sample_is_not_repeated():
    calls = []

    def f(completions):
        calls.append(1)
        raise KeyError

    feedback = RewardFunction(f)([Group([1], [Response([2], text="a")], "p")])
    assert feedback.errors == ["[f] groups[0].responses[0]: KeyError"]
    assert len(calls) == 1


def test_exception_that_cannot_be_shown():
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError

    def f(completions):
        raise MuteError

    assert RewardFunction(f)(groups()).errors[1] == "[f] groups[0].responses[0]: MuteError"


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, asyncio.CancelledError])
def test_exits_stay_errors(error):
    def f(completions):
        raise error

    feedback = RewardFunction(f)(groups())
    assert feedback.counts["error"] == 3
    assert feedback.errors[1] == f"[f] groups[0].responses[0]: {error.__name__}"


def test_repeated_call_gets_fresh_copies():
    def f(completions, tags):
        tags[0].append("used")
        if len(completions) > 1:
            raise ValueError
        return [len(t) for t in tags]

    given = [Group([1], [Response([2], text="a"), Response([3], text="b")], "p", {"tags": []})]
    assert RewardFunction(f)(given).rewards == [[1.0, 1.0]]


def test_keyboard_interrupt_passes_through():
    calls = []

    def f(completions):
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RewardFunction(f)(groups())
    assert len(calls) == 1

    def late(completions):
        if len(completions) > 1:
            raise ValueError
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RewardFunction(late)(groups())


def test_only_the_first_messages_are_kept():
    given = [Group([1], [Response([2], text="a")] * 9, "p")]
    feedback = RewardFunction(lambda completions: ["x"] * len(completions))(given)
    assert feedback.counts["error"] == 9
    assert len(feedback.errors) == 5


def test_deadline_of_the_call():
    release = threading.Event()
    f = RewardFunction(lambda completions: release.wait(30) and None, timeout_s=0.05)
    start = time.monotonic()
    feedback = f(groups())
    assert time.monotonic() - start < 5.0
    assert feedback.counts["error"] == 3
    assert feedback.errors[0] == "[reward] groups[0].responses[0]: timed out after 0.05 s"
    release.set()


def test_deadline_keeps_what_is_done_and_stops_the_rest():
    release, calls = threading.Event(), []

    def f(completions):
        calls.append(len(completions))
        if len(completions) > 1:
            raise ValueError("one at a time")
        if completions == ["bb"]:
            release.wait(30)
        return length(completions)

    feedback = RewardFunction(f, timeout_s=0.3)(groups())
    assert feedback.rewards == [[1.0, None], [None]]
    assert feedback.errors[1:] == [
        "[f] groups[0].responses[1]: timed out after 0.3 s",
        "[f] groups[1].responses[0]: timed out after 0.3 s",
    ]
    release.set()
    time.sleep(0.05)
    assert calls == [3, 1, 1]  # the call after the deadline was never made


def test_no_samples_makes_no_call():
    calls = []
    feedback = RewardFunction(lambda completions: calls.append(1))([Group([1])])
    assert feedback.rewards == [[]]
    assert calls == []
    assert RewardFunction(lambda completions, answer: [])([]).rewards == []


@pytest.mark.parametrize(
    ("f", "options", "message"),
    [
        ("text", {}, "f must be callable but is 'text'"),
        (length, {"timeout_s": 0.0}, "timeout_s must be positive and finite but is 0.0"),
        (length, {"timeout_s": float("inf")}, "timeout_s must be positive and finite but is inf"),
        (length, {"timeout_s": float("nan")}, "timeout_s must be positive and finite but is nan"),
        (lambda p, c: [], {}, r"must take completions .* by name but takes \(p, c\)"),
        (lambda completions, x, /: [], {}, r"by name but takes \(completions, x\)"),
        (dict, {}, "the reward function's arguments must be readable but are not"),
    ],
)
def test_bad_functions(f, options, message):
    with pytest.raises(ConfigError, match=message):
        RewardFunction(f, **options)


def test_required_column_that_is_missing():
    message = r"\[f\] column 'solution' is required by the reward function but the columns are \['a"

    def f(completions, solution):
        return []

    with pytest.raises(RequestError, match=message):
        RewardFunction(f)(groups())


def test_column_with_a_name_of_ours():
    given = groups()
    given[0].columns["prompts"] = "x"
    with pytest.raises(
        RequestError, match=r"columns must not be named .* but one is named 'prompts'"
    ):
        RewardFunction(length)(given)


def test_column_that_cannot_be_copied():
    given = groups()
    given[0].columns["answer"] = threading.Lock()
    with pytest.raises(RequestError, match=r"\[f\] answer must be plain data that can be copied"):
        RewardFunction(lambda completions, answer: [], name="f")(given)
    assert RewardFunction(length)(given).valid_fraction == 1.0  # f does not take it


def test_sum():
    """2 * length - 1 * constant: 2-10, 4-none, 6-10."""
    constant = RewardFunction(lambda completions: [10.0, None, 10.0], name="constant")
    feedback = RewardSum([RewardFunction(length), constant], weights=[2.0, -1.0])(groups())
    assert feedback.rewards == [[-8.0, 4.0], [-4.0]]
    assert feedback.components["constant"] == [[10.0, None], [10.0]]
    assert feedback.metrics()["rewards/length/mean"] == 2.0
    assert feedback.metrics()["rewards/constant/std"] == 0.0


def test_sum_of_abstentions_and_errors():
    a = RewardFunction(lambda completions: [None, None, 1.0], name="a")
    b = RewardFunction(lambda completions: [None, "x", 2.0], name="b")
    feedback = RewardSum([a, b])(groups())
    assert feedback.rewards == [[None, None], [3.0]]
    assert feedback.status == [["abstain", "error"], ["value"]]
    assert len(feedback.errors) == 1
    assert "[b] groups[0].responses[1]" in feedback.errors[0]


def test_sum_that_overflows_is_an_error():
    f = RewardFunction(lambda completions: [1e38, 1.0, 1.0], name="f")
    feedback = RewardSum([f], weights=[10.0])(groups())
    assert feedback.status == [["error", "value"], ["value"]]
    message = "[reward_sum] groups[0].responses[0]: reward must be finite and within 1e38 but is"
    assert feedback.errors[0].startswith(message)


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (0, None, r"\[reward_sum\] sources must hold at least one but is empty"),
        (1, [1.0, 2.0], "weights must have one number a source, 1, but has 2"),
        (1, [float("nan")], "weights must be finite but one is nan"),
    ],
)
def test_bad_sums(count, weights, message):
    with pytest.raises(ConfigError, match=message):
        RewardSum([RewardFunction(length)] * count, weights)
