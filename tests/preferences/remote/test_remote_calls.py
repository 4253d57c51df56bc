"""Calls of an endpoint that misbehaves in every way: counted, excluded, repeated, not invented."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from judge_server import (
    Script,
    Server,
    after,
    answer,
    cut,
    hang_up,
    status,
    trickle,
)
from preferences.remote.scripted import KEY, by_text, endpoint_of, one_group, shown

from pyengine.errors import RequestError, SpendingLimitError
from pyengine.loops.steps import JudgePolicy, judge
from pyengine.preferences import Feedback, Group, RemoteScores, Response
from pyengine.preferences.remote import reply_cache
from pyengine.preferences.remote.attempt import _retry_after_s
from pyengine.preferences.sources.pending import begin

SERVES = Callable[[Script], Server]


@pytest.fixture
def serve() -> Iterator[SERVES]:
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(Server(script))


FAULTS = {
    "fine": [answer({"score": 7})],
    "busy": [status(429, retry_after="0"), answer({"score": 6})],
    "broken": [status(500), status(503), answer({"score": 5})],
    "cut": [cut(), answer({"score": 4})],
    "hangs up": [hang_up, answer({"score": 3})],
    "no JSON": [status(200, "<html>"), answer({"score": 2})],
    "fenced": [answer('Well. {"a": 1}\n```json\n{"score": 9}\n```')],
    "bare": [answer("8.")],
    "null": [answer({"score": None})],
    "always 500": [status(500, f'{{"error": "{KEY}"}}')],
    "always cut": [cut()],
    "wrong shape": [status(200, '{"choices": []}')],
    "a list": [status(200, "[1]")],
    "refused": [status(401, f'{{"error": {{"message": "Incorrect API key provided: {KEY}"}}}}')],
    "NaN": [answer('{"score": NaN}')],
    "infinite": [answer('{"score": 1e999}')],
    "true": [answer({"score": True})],
    "text": [answer({"score": "high"})],
    "outside": [answer({"score": 11})],
    "no content": [answer(None)],
    "declined": [answer(None, refusal=f"no, {KEY}")],
    "prose": [answer(f"x {KEY} I would say seven of ten")],
    "deep": [answer('{"a":' * 5000)],
}
SCORES = {
    "fine": 7, "busy": 6, "broken": 5, "cut": 4, "hangs up": 3, "no JSON": 2, "fenced": 9, "bare": 8
}  # fmt: skip


def test_every_fault_is_its_responses_alone(serve: SERVES, tmp_path: Path) -> None:
    server = serve(by_text(FAULTS))
    endpoint = endpoint_of(server, cache=str(tmp_path), concurrency=5)
    feedback = RemoteScores(endpoint)(one_group(*FAULTS))
    assert dict(zip(FAULTS, feedback.rewards[0], strict=True)) == {
        name: SCORES.get(name) for name in FAULTS
    }
    states = dict(zip(FAULTS, feedback.status[0], strict=True))
    assert states.pop("null") == "abstain"
    assert {name for name, state in states.items() if state == "value"} == set(SCORES)
    counts = feedback.counts_by_name
    assert counts["calls"] == len(server.requests)
    # Once each, once more or twice more where it says so, and both retries where nothing helps.
    assert counts["retries"] == 1 + 2 + 1 + 1 + 1 + 4 * 2 == counts["calls"] - len(FAULTS)
    assert counts["failed_calls"] == len(FAULTS) - len(SCORES) - 1
    assert counts["searched_answers"] == 2
    unmetered = {"always 500", "always cut", "wrong shape", "a list", "refused"}
    metered = len(FAULTS) - len(unmetered)
    assert counts["prompt_tokens"] == 100 * metered
    assert counts["completion_tokens"] == 10 * metered
    assert server.most <= 5
    assert {headers["authorization"] for _, headers, _ in lowered(server)} == {f"Bearer {KEY}"}

    # Each has its message, in which the key is not.
    each = [RemoteScores(endpoint)(one_group(name)) for name in ("refused", "prose", "declined")]
    said = [message for feedback in each for message in feedback.errors]
    assert said[0] == (
        "[remote_scores] groups[0].responses[0]: the endpoint answered 401: "
        '{"error": {"message": "Incorrect API key provided: [key]"}}'
    )
    assert "must be JSON with the field 'score' but is 'x [key] I would" in said[1]
    assert said[2].endswith("the model refused: no, [key]")

    # What was answered is on file, without the key, and is not asked for again.
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1
    assert KEY[:12] not in files[0]
    answered = [*SCORES, "null"]
    server.requests.clear()
    again = RemoteScores(endpoint_of(server, cache=str(tmp_path)))(one_group(*answered))
    assert server.requests == []
    assert again.rewards == [[SCORES.get(name) for name in answered]]
    assert again.status[0][-1] == "abstain"
    assert (again.counts_by_name["calls"], again.counts_by_name["cache_hits"]) == (0, 9)


def lowered(server: Server) -> list[tuple[str, dict, dict]]:
    return [(p, {k.lower(): v for k, v in h.items()}, b) for p, h, b in server.requests]


def test_a_call_has_its_seconds_however_slowly_it_trickles(serve: SERVES) -> None:
    server = serve(by_text({"hangs": [after(60, answer(1))], "trickles": [trickle]}))
    start = time.monotonic()
    source = RemoteScores(endpoint_of(server, timeout_s=0.2, retries=0))
    feedback = source(one_group("hangs", "trickles"))
    assert time.monotonic() - start < 10
    assert feedback.rewards == [[None, None]]
    assert [message.split(": ")[1] for message in feedback.errors] == ["no answer within 0.2 s"] * 2
    assert feedback.counts_by_name["unmetered_calls"] == 2


def test_no_endpoint(serve: SERVES) -> None:
    with Server(by_text({})) as server:
        url = server.url
    feedback = RemoteScores(endpoint_of(url))(one_group("a"))
    assert feedback.status == [["error"]]
    assert feedback.errors[0].endswith("the connection failed: ConnectError")
    assert feedback.counts_by_name["retries"] == 2
    assert feedback.counts_by_name["unmetered_calls"] == 0  # nothing was sent


def test_a_pause_that_is_asked_for_is_everyones(serve: SERVES) -> None:
    plan = {
        "a": [status(429, retry_after="0.4"), answer({"score": 1})],
        "b": [answer({"score": 2})],
    }
    server = serve(by_text(plan))
    start = time.monotonic()
    feedback = RemoteScores(endpoint_of(server, concurrency=1))(one_group("a", "b"))
    assert time.monotonic() - start >= 0.4
    assert feedback.rewards == [[1.0, 2.0]]
    long = RemoteScores(endpoint_of(serve(by_text({"a": [status(503, retry_after="3600")]}))))
    feedback = long(one_group("a"))
    assert feedback.errors[0].endswith("answered 503: {} and asks to wait 3600 s")
    assert feedback.counts_by_name["calls"] == 1


def test_pauses_as_numbers_and_dates() -> None:
    assert _retry_after_s({"retry-after": "1.5"}) == 1.5
    assert _retry_after_s({"retry-after": "-3"}) == 0.0
    later = _retry_after_s({"retry-after": formatdate(time.time() + 30, usegmt=True)})
    assert later is not None
    assert 25 < later <= 30
    for text in ("soon", "nan", "", "inf"):
        assert _retry_after_s({"retry-after": text}) is None


def test_an_endpoint_without_schemas_is_asked_without(serve: SERVES) -> None:
    def script(_: int, body: dict) -> Any:
        if "response_format" in body:
            return status(400, '{"error": {"message": "unknown field response_format"}}')
        return answer('I say {"score": 3}, since {it} is short')

    server = serve(script)
    feedback = RemoteScores(endpoint_of(server, concurrency=1))(one_group("a", "b", "c"))
    assert feedback.rewards == [[3.0, 3.0, 3.0]]
    counts = feedback.counts_by_name
    assert (counts["calls"], counts["unstructured_calls"], counts["retries"]) == (4, 3, 0)
    assert counts["searched_answers"] == 3


def test_a_limit_of_spending_stops_the_run_and_holds_when_it_is_resumed(
    serve: SERVES, tmp_path: Path
) -> None:
    """A call costs 100 * 10 + 10 * 100 dollars a million, $0.002; of $0.005 three begin."""
    server = serve(by_text({name: [answer({"score": 5})] for name in "abcde"}))
    prices = {"usd_per_million_prompt_tokens": 10.0, "usd_per_million_completion_tokens": 100.0}

    def scores(limit_usd: float) -> RemoteScores:
        limits = {"limit_usd": limit_usd, "cache": str(tmp_path), "concurrency": 1}
        return RemoteScores(endpoint_of(server, **(prices | limits)))

    policy = JudgePolicy(on_failure="skip", retries=3)  # no policy goes on paying
    with pytest.raises(SpendingLimitError, match=r"limit_usd = 0\.005 but 0\.006 is spent"):
        judge(scores(0.005), one_group(*"abcde"), policy, "[test]")
    assert len(server.requests) == 3
    with pytest.raises(SpendingLimitError):
        scores(0.005)(one_group(*"abcde"))
    assert len(server.requests) == 3
    source = scores(1.0)
    feedback = source(one_group(*"abcde"))
    assert (feedback.rewards, len(server.requests)) == ([[5.0] * 5], 5)
    assert feedback.counts_by_name["cost_usd"] == pytest.approx(0.004)
    assert source.endpoint.spent_usd == pytest.approx(0.010)


def test_a_full_disk_loses_no_answer(
    serve: SERVES, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(by_text({name: [answer({"score": 5})] for name in "abc"}))
    source = RemoteScores(endpoint_of(server, cache=str(tmp_path / "cache")))

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reply_cache.os, "write", full)
        feedback = source(one_group("a", "b"))
    assert feedback.rewards == [[5.0, 5.0]]
    assert feedback.counts_by_name["cache_failures"] == 2
    assert feedback.errors == [
        "[remote_scores] the cache could not be used: No space left on device"
    ]
    assert source(one_group(*"abc")).rewards == [[5.0] * 3]  # a and b from memory
    assert len(server.requests) == 3
    (tmp_path / "file").write_text("")
    nowhere = RemoteScores(endpoint_of(server, cache=str(tmp_path / "file" / "cache")))
    feedback = nowhere(one_group("a"))
    assert (feedback.rewards, feedback.counts_by_name["cache_failures"]) == ([[5.0]], 1)


def test_an_endpoint_that_dies_within_a_batch_is_resumed_to_the_same(
    serve: SERVES, tmp_path: Path
) -> None:
    scores = {f"response {i}": 1 + i % 9 for i in range(12)}
    dead = [False]

    def script(number: int, body: dict) -> Any:
        return hang_up if dead[0] and number >= 5 else answer({"score": scores[shown(body)[0]]})

    server = serve(script)
    groups = one_group(*scores)
    whole = RemoteScores(endpoint_of(server))(groups)
    server.requests.clear()
    dead[0] = True
    cached = endpoint_of(server, cache=str(tmp_path), retries=0, concurrency=2)
    assert RemoteScores(cached)(groups).counts["error"] == 7
    dead[0] = False
    server.requests.clear()
    resumed = RemoteScores(endpoint_of(server, cache=str(tmp_path)))(groups)
    assert resumed.rewards == whole.rewards
    assert len(server.requests) == 7


def test_judging_goes_on_while_the_caller_samples(serve: SERVES) -> None:
    server = serve(lambda _, body: after(0.05, answer({"score": len(shown(body)[0])})))
    source = RemoteScores(endpoint_of(server))
    pending = [begin(source, one_group("a", "bb")), begin(source, one_group("ccc"))]
    until = time.monotonic() + 10
    while not all(p.done() for p in pending) and time.monotonic() < until:
        time.sleep(0.005)  # what an engine does without the interpreter's lock
    assert [p.result().rewards for p in pending] == [[[1.0, 2.0]], [[3.0]]]
    assert pending[0].result() is pending[0].result()
    assert source(one_group("a", "bb")).rewards == [[1.0, 2.0]]
    at_once = begin(lambda groups: Feedback.from_rewards([[1.0]]), one_group("a"))
    assert at_once.done()
    assert at_once.result().rewards == [[1.0]]
    given_up = RemoteScores(endpoint_of(serve(lambda *_: after(60, answer(1))))).begin(
        one_group("a")
    )
    given_up.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        given_up.result()


def test_an_interrupt_gives_the_calls_up_and_the_thread_ends_with_the_endpoint(
    serve: SERVES,
) -> None:
    about_to_wait = threading.Event()

    def interrupt(*_: Any) -> Any:
        about_to_wait.wait(60)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        return after(60, answer({"score": 1}))

    source = RemoteScores(endpoint_of(serve(interrupt), timeout_s=60.0))
    others, start = threading.enumerate(), time.monotonic()
    pending = source.begin(one_group("a"))
    about_to_wait.set()
    with pytest.raises(KeyboardInterrupt):
        pending.result()
    assert time.monotonic() - start < 30
    [thread] = [t for t in threading.enumerate() if t.name == "judge" and t not in others]
    del source, pending
    thread.join(30)
    assert not thread.is_alive()


def test_many_calls_take_turns_of_the_limit(serve: SERVES) -> None:
    """100 calls of 50 ms take 5 s one after another; 20 at a time 0.25 s at the least."""
    server = serve(lambda *_: after(0.05, answer({"score": 5})))
    source = RemoteScores(endpoint_of(server, concurrency=20))
    source(one_group("first"))  # the package is imported, the client made
    start = time.monotonic()
    feedback = source(one_group(*map(str, range(100))))
    assert time.monotonic() - start < 4.5
    assert feedback.counts["value"] == 100
    assert 10 <= server.most <= 20


def test_the_same_question_is_asked_once(serve: SERVES) -> None:
    server = serve(lambda *_: answer({"score": 5}))
    feedback = RemoteScores(endpoint_of(server))(one_group("a", "a", "b"))
    assert feedback.rewards == [[5.0, 5.0, 5.0]]
    assert len(server.requests) == 2


def test_a_request_says_what_the_fields_say(serve: SERVES) -> None:
    server = serve(lambda *_: answer({"reason": "short", "score": 2}))
    fields = {"api_key_env": None, "seed": 4, "temperature": None, "max_tokens": 9}
    endpoint = endpoint_of(server, max_tokens_as="max_completion_tokens", **fields)
    source = RemoteScores(endpoint, lowest=0, highest=3, explain=True, instructions="Be strict.")
    chat = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Go."}]
    assert source([Group([1], [Response([2], text="la")], prompt=chat)]).rewards == [[2.0]]
    [(path, headers, body)] = lowered(server)
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer none"
    assert body["max_completion_tokens"] == 9
    assert body["seed"] == 4
    assert not {"temperature", "max_tokens"} & body.keys()
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be strict."}
    assert "system: Rhyme.\n\nuser: Go." in user["content"]
    schema = body["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == ["reason", "score"]
    assert schema["properties"]["score"] == {"type": "number", "minimum": 0, "maximum": 3}


def test_groups_without_texts_are_refused_before_any_call(serve: SERVES) -> None:
    server = serve(lambda *_: answer({"score": 2}))
    source = RemoteScores(endpoint_of(server))
    for group, what in (
        (Group([1], [Response([2])], prompt="p"), r"groups\[0\]\.responses\[0\]\.text"),
        (Group([1], [Response([2], text="r")]), r"groups\[0\]\.prompt"),
    ):
        with pytest.raises(RequestError, match=what):
            source([group])
    assert server.requests == []


def test_lines_that_a_kill_cut_off_are_passed_over(tmp_path: Path) -> None:
    cache = reply_cache.ReplyCache(str(tmp_path))
    cache.put("a", 1.0, 0.5)
    cache.put("b", None, 0.25)
    cache.put(None, None, 0.125)
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes() + b'{"question": "c", "val')
    cache = reply_cache.ReplyCache(str(tmp_path))
    assert (cache.spent_usd, cache.damaged) == (0.875, 1)
    assert [cache.get(name) for name in "abc"] == [(True, 1.0), (True, None), (False, None)]
    cache.put("d", 4.0, 0.0)
    assert reply_cache.ReplyCache(str(tmp_path)).get("d") == (True, 4.0)
    assert json.loads(file.read_text().splitlines()[-1])["question"] == "d"
