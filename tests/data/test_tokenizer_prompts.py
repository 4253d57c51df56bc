"""Prompts and completions as ids: chats, texts, ids given ready, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_files import CHATML, SPECIALS, begun, theirs, trained, write_folder

from pyengine.data.tokenizer import Tokenizer
from pyengine.errors import DataError, RequestError, TemplateError

USER = [{"role": "user", "content": "the fox?"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_chat_completion_is_what_sampling_would_make(tokenizer: Tokenizer) -> None:
    prompt, response = tokenizer.encode_completion(USER, answer("the dog."))
    assert prompt == tokenizer.encode_chat(USER)
    assert response == [*tokenizer.encode("the dog."), 2]
    whole = tokenizer.apply_chat_template(USER + answer("the dog."), add_generation_prompt=False)
    assert tokenizer.decode(prompt + response, skip_special_tokens=False) + "\n" == whole


def test_empty_answer_is_only_the_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_completion(USER, answer(""))[1] == [2]


def test_completion_of_several_turns_ends_with_the_last(tokenizer: Tokenizer) -> None:
    turns = [*answer("a"), *USER, *answer("b")]
    response = tokenizer.encode_completion(USER, turns)[1]
    assert response.count(2) == 3
    assert tokenizer.decode(response) == "a\nuser\nthe fox?\nassistant\nb"


# As early Qwen models have it: the last turn is left open unless an answer is asked for.
OPEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|endoftext|>"])
def test_a_last_turn_that_the_template_leaves_open(tmp_path: Path, eos: str) -> None:
    """All of it stays, with the end that a next turn would be written after."""
    path = write_folder(tmp_path / "m", trained(), chat_template=OPEN, eos_token=eos)
    ours = Tokenizer.load(path)
    turns = [*answer("First."), {"role": "user", "content": "and then?"}, *answer("Second answer.")]
    for completion in (turns, answer("only"), answer("")):
        prompt, response = ours.encode_completion(USER, completion)
        longer = theirs(path).apply_chat_template([*USER, *completion, *USER], tokenize=False)
        text = ours.decode(prompt + response, skip_special_tokens=False)
        assert (
            longer == text + "\n<|im_start|>user\nthe fox?<|im_end|>\n"[: len(longer) - len(text)]
        )
        assert response[-1] == 2


@pytest.mark.parametrize("template", [CHATML, OPEN])
def test_an_answer_that_quotes_end_tokens_is_whole(tmp_path: Path, template: str) -> None:
    ours = Tokenizer.load(write_folder(tmp_path / "m", trained(), chat_template=template))
    rng = random.Random(0)
    words = ["the", " dog", "<|im_end|>", "<|endoftext|>", "\n", "<|im_start|>", "."]
    for _ in range(200):
        content = "".join(rng.choices(words, k=rng.randint(1, 7))) + "!"
        response = ours.encode_completion(USER, answer(content))[1]
        assert ours.decode(response, skip_special_tokens=False) == content + "<|im_end|>"


def test_a_template_that_ends_turn_and_text(tmp_path: Path) -> None:
    """As Phi-3 has it: sampling ends with the turn, and so does a completion."""
    template = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    path = write_folder(tmp_path / "m", trained(), chat_template=template, eos_token=SPECIALS[0])
    ours = Tokenizer.load(path)
    assert ours.stop_ids == {0, 2}
    for turns in (answer("the dog."), [*answer("a"), *USER, *answer("the dog.")]):
        response = ours.encode_completion(USER, turns)[1]
        assert response[-len(ours.encode("the dog.")) - 1 :] == [*ours.encode("the dog."), 2]


def test_a_turn_after_the_answer_that_the_template_refuses(tmp_path: Path) -> None:
    template = OPEN.replace(
        "{% for m", "{% if messages|length > 2 %}{{ none.x }}{% endif %}{% for m"
    )
    ours = Tokenizer.load(write_folder(tmp_path / "m", trained(), chat_template=template))
    assert ours.encode_completion(USER, answer("x"))[1] == [*ours.encode("x"), 2]


def test_text_completion_ends_in_eos_once(tokenizer: Tokenizer) -> None:
    prompt, response = tokenizer.encode_completion("the", " dog")
    assert (prompt, response) == (tokenizer.encode("the"), [*tokenizer.encode(" dog"), 2])
    assert tokenizer.encode_completion("the", " dog<|im_end|>")[1] == response
    assert tokenizer.encode_completion("the", "")[1] == [2]


def test_token_over_the_boundary_is_not_made(tmp_path: Path) -> None:
    """A prompt that ends in "\\n" and an answer that begins with one: "\\n\\n" is one token."""
    path = write_folder(tmp_path / "m", trained())
    ours = Tokenizer.load(path)
    assert len(ours.encode("\n\n")) == 1
    prompt, response = ours.encode_completion(USER, answer("\n"))
    assert prompt == ours.encode_chat(USER)
    assert response == [*ours.encode("\n"), 2]


def test_template_without_an_end_gets_eos(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %} {% endif %}"
    )
    template += "{% endfor %}{% if add_generation_prompt %} assistant: {% endif %}"
    ours = Tokenizer.load(write_folder(tmp_path / "m", trained(), chat_template=template))
    assert ours.encode_completion(USER, answer("x"))[1] == [*ours.encode("x"), 2]


def test_template_that_changes_the_past_is_refused(tmp_path: Path) -> None:
    template = "{{ messages | length }}" + CHATML
    ours = Tokenizer.load(write_folder(tmp_path / "m", trained(), chat_template=template))
    with pytest.raises(TemplateError, match=r"differs at character 0: '1<.* becomes '2<"):
        ours.encode_completion(USER, answer("x"))


def test_no_second_bos_in_chats(tmp_path: Path) -> None:
    template = "{{ bos_token }}" + CHATML
    path = write_folder(tmp_path / "m", begun(), chat_template=template)
    ours = Tokenizer.load(path)
    ids = ours.encode_chat(USER)
    assert ids[:2] == [1, 1]  # bos, then the turn's own <|im_start|>, which is the same token here
    assert ids[2] != 1
    assert ids == theirs(path).apply_chat_template(USER, add_generation_prompt=True)["input_ids"]


def test_prompts_of_every_kind(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_prompt("the") == tokenizer.encode("the")
    assert tokenizer.encode_prompt(USER) == tokenizer.encode_chat(USER)
    ids = [5, 9, 339]
    encoded = tokenizer.encode_prompt(ids)
    assert encoded == ids
    assert encoded is not ids
    assert tokenizer.encode_prompt([np.int64(5), 9]) == [5, 9]


def test_ids_without_a_token_are_replacement_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the")
    assert tokenizer.decode([*ids, 340, 99999, *ids]) == "the\ufffd\ufffdthe"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.encode("a\udc80"), DataError, r"text .* surrogate U\+DC80 at character 1"),
        (lambda t: t.encode(5), DataError, r"text must be a str but is int"),
        (lambda t: t.decode([1, -1]), RequestError, r"ids\[1\] is -1"),
        (lambda t: t.decode([1.0]), RequestError, r"ids\[0\] is 1.0"),
        (lambda t: t.decode([True]), RequestError, r"ids\[0\] is True"),
        (lambda t: t.encode_prompt([340]), RequestError, r"in \[0, 340\) but ids\[0\] is 340"),
        (lambda t: t.encode_prompt(["the"]), RequestError, r"ids\[0\] is 'the'"),
        (lambda t: t.encode_prompt(5), RequestError, r"prompt must be a text, .* but is int"),
        (lambda t: t.encode_prompt([{"role": "user"}]), DataError, r"messages\[0\].content"),
        (
            lambda t: t.encode_completion(USER, "x"),
            DataError,
            r"must both be texts or both be lists of messages but are messages and str",
        ),
        (
            lambda t: t.encode_completion(USER, USER),
            DataError,
            r"completion\[0\].role must be assistant but is 'user'",
        ),
    ],
)
def test_bad_input(tokenizer: Tokenizer, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(tokenizer)


def test_model_without_template_or_eos(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m", trained(), chat_template=None, eos_token=None)
    ours = Tokenizer.load(path)
    with pytest.raises(TemplateError, match=r"model must have a chat template"):
        ours.encode_prompt(USER)
    with pytest.raises(RequestError, match=r"model must have an eos token"):
        ours.encode_completion("the", " dog")


def test_nul_and_control_characters_survive(tokenizer: Tokenizer) -> None:
    text = "a\x00b\x01\x7f\ufeffc"
    assert tokenizer.decode(tokenizer.encode(text)) == text
