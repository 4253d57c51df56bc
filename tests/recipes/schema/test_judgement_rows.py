"""Packaged judgements: what their script makes, right in either order."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from pyengine.recipes.schema.packaged import data_path

ROOT = Path(__file__).resolve().parents[3]


def rows(name):
    return [json.loads(line) for line in data_path(f"packaged:{name}").read_text().splitlines()]


def test_they_are_what_the_script_makes_of_the_answers():
    made = runpy.run_path(str(ROOT / "benchmarks/data/judgements.py"))["files"]
    files = made(ROOT / "pyengine/recipes/data")
    assert {name: rows(name) for name in files} == files
    answers = rows("answers_demo.jsonl")
    assert [len(found) for found in files.values()] == [48, 16]
    for i, question in enumerate(q for found in files.values() for q in found):
        row, right = answers[i // 2], "AB"[i % 2]
        text = question["prompt"][0]["content"]
        assert question["answer"] == right
        assert text.index(row["answer"]) < text.index(row["flat"]) or right == "B"
        assert f"Text {right}: {row['answer']}" in text


def test_answers_are_to_prompts_of_the_demo():
    prompts = [row["prompt"] for row in rows("prompts_demo_train.jsonl")]
    answers = rows("answers_demo.jsonl")
    assert [row["prompt"] for row in answers] == prompts[: len(answers)]
    assert len({row["answer"] for row in answers} | {row["flat"] for row in answers}) == 64
