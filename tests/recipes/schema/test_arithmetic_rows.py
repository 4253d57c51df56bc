"""Packaged arithmetic: answers are right, what is held out is not trained on, files are as made."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

from pyengine.recipes.schema.packaged import data_path
from pyengine.recipes.schema.prompt_files import load_prompts, prompt_text
from pyengine.recipes.schema.prompted_recipe import PromptsSpec

MADE = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "data" / "arithmetic.py"))
NAMES = ("arithmetic_train.jsonl", "arithmetic_heldout.jsonl")
TEXTS = ("sums_train.jsonl", "sums_heldout.jsonl")


def contents(name: str) -> list[Any]:
    """(sign, numbers) of each question, those of a sum in any order, once its answer is checked."""
    loaded = load_prompts(PromptsSpec(f"packaged:{name}"))
    found = []
    for prompt, answer in zip(loaded.prompts, loaded.columns["answer"], strict=True):
        match = re.search(r"What is (\d+) ([+-]) (\d+)\?", prompt_text(prompt))
        assert match is not None
        a, sign, b = int(match[1]), match[2], int(match[3])
        assert int(answer) == (a + b if sign == "+" else a - b)
        found.append((sign, tuple(sorted((a, b))) if sign == "+" else (a, b)))
    return found


def test_answers_are_right_and_held_out_by_content() -> None:
    train, held_out = (contents(name) for name in NAMES)
    assert (len(set(train)), len(set(held_out))) == (len(train), len(held_out)) == (180, 60)
    assert not set(train) & set(held_out)
    solved = {("+", (6, 8)), ("-", (48, 5)), ("+", (25, 30))}  # what the texts show
    assert not solved & {*train, *held_out}


def test_the_files_are_what_the_script_makes() -> None:
    made = MADE["files"]()
    assert set(made) == {*NAMES, *TEXTS}
    for name, rows in made.items():
        assert data_path(f"packaged:{name}").read_text() == MADE["text"](rows)


def test_sums_are_the_same_questions_as_text_and_all_that_teachers_write_is_right() -> None:
    for chats, texts in zip(NAMES, TEXTS, strict=True):
        asked, continued = (load_prompts(PromptsSpec(f"packaged:{n}")) for n in (chats, texts))
        assert asked.columns["answer"] == continued.columns["answer"]
        for chat, text in zip(asked.prompts, continued.prompts, strict=True):
            expression = text.splitlines()[-1].removesuffix(" =")
            assert f"What is {expression}?" in prompt_text(chat)
    train = load_prompts(PromptsSpec("packaged:sums_train.jsonl"))
    for traces, answer in zip(train.columns["traces"], train.columns["answer"], strict=True):
        for trace in traces:
            sides = [eval(side) for side in trace.split("=")]  # digits and signs of our own
            assert sides == [int(answer)] * len(sides)
