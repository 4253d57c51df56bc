"""Prompts are rendered before a run: what is too long is found at the start, by file and line."""

from __future__ import annotations

import numpy as np
import pytest

from pyengine.data.fitting import fit_prompts
from pyengine.errors import ConfigError, DataError, RequestError, TemplateError

PLACES = [f"prompts.jsonl:{i}" for i in (1, 2, 5)]


class Letters:
    """One token a character."""

    def encode_prompt(self, prompt):
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            if prompt[0]["role"] == "wizard":
                raise TemplateError("[chat] template must render but: no wizards")
            return [ord(c) for c in f"<{prompt[0]['content']}>"]
        return [ord(c) for c in prompt] if isinstance(prompt, str) else list(prompt)


def fit(*prompts, positions=8, tokens=3, **options):
    return fit_prompts(prompts, Letters(), positions, tokens, **options)


def test_prompts_that_fit_stay_as_they_are():
    chat = [{"role": "user", "content": "abc"}]
    fitted = fit("abcde", chat, [1, 2])
    assert fitted.prompts == ["abcde", chat, [1, 2]]
    assert (fitted.kept, fitted.max_tokens) == ([0, 1, 2], [3, 3, 3])
    report = fitted.report
    assert (report.rows, report.kept, report.prompt_tokens) == (3, 3, 12)
    assert (report.dropped_overlong, report.truncated) == (0, 0)


def test_error_names_file_and_line():
    message = (
        r"^\[prompts.jsonl:5\] prompt \+ response must fit in 8 tokens but have 6 \+ 3 tokens; "
        "overlong may be drop, truncate_left or truncate_right$"
    )
    with pytest.raises(DataError, match=message):
        fit("a", "b", "abcdef", places=PLACES)


def test_drop():
    fitted = fit("abcdef", "ab", "abcdefghi", overlong="drop")
    assert (fitted.prompts, fitted.kept, fitted.max_tokens) == (["ab"], [1], [3])
    report = fitted.report
    assert (report.rows, report.kept, report.dropped_overlong) == (3, 1, 2)
    with pytest.raises(DataError, match=r"^\[eval\] at least one prompt must remain but 1 of 1"):
        fit("abcdef", overlong="drop", source="eval")


def test_truncate_left_cuts_the_prompts_beginning():
    fitted = fit("abcdefg", "ab", overlong="truncate_left")
    assert fitted.prompts == [[ord(c) for c in "cdefg"], "ab"]
    assert (fitted.max_tokens, fitted.report.truncated) == ([3, 3], 1)
    assert fitted.report.prompt_tokens == 7
    with pytest.raises(DataError, match=r"response must leave room in 8 tokens for truncate_left"):
        fit("abcdefg", tokens=8, overlong="truncate_left")


def test_truncate_right_leaves_a_response_less_room():
    fitted = fit("abcdefg", "ab", overlong="truncate_right")
    assert (fitted.prompts, fitted.max_tokens) == (["abcdefg", "ab"], [1, 3])
    assert fitted.report.truncated == 1
    with pytest.raises(DataError, match=r"prompt must leave room in 8 tokens for truncate_right"):
        fit("abcdefgh", overlong="truncate_right")


def test_what_cannot_be_rendered_is_named():
    wizard = [{"role": "wizard", "content": "x"}]
    with pytest.raises(TemplateError, match=r"^\[prompts.jsonl:2\] \[chat\] template must render"):
        fit("a", wizard, "b", places=PLACES)
    with pytest.raises(DataError, match=r"^\[prompts\[1\]\] prompt must have at least one token"):
        fit("a", "")


def test_with_a_tokenizer_from_files(tokenizer):
    chat = [{"role": "user", "content": "the quick brown fox"}]
    length = len(tokenizer.encode_chat(chat))
    fitted = fit_prompts([chat], tokenizer, length + 4, 4)
    assert (fitted.prompts, fitted.report.prompt_tokens) == ([chat], length)
    with pytest.raises(DataError, match=rf"have {length} \+ 5 tokens"):
        fit_prompts([chat], tokenizer, length + 4, 5)
    assert fit_prompts([np.array([3, 10**6])], tokenizer, 100, 4).report.prompt_tokens == 2
    with pytest.raises(RequestError, match=r"^\[prompts\[0\]\] \[tokenizer\] prompt must be a te"):
        fit_prompts([None], tokenizer, 100, 4)


def test_without_a_tokenizer():
    assert fit_prompts([[1, 2]], None, 8, 3).prompts == [[1, 2]]
    with pytest.raises(DataError, match=r"prompt must be token ids since the model has no tokeni"):
        fit_prompts(["ab"], None, 8, 3)


def test_bad_options():
    with pytest.raises(ConfigError, match=r"places must have one entry for each of 1 prompts but"):
        fit("a", places=PLACES)
    with pytest.raises(ConfigError, match="overlong must be one of error, drop, truncate_left, tr"):
        fit("a", overlong="cut")
