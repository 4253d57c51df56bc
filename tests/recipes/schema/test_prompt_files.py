from __future__ import annotations

import json

import pytest

from pyengine.errors import DataError
from pyengine.recipes.schema.prompt_files import load_prompts, prompt_text
from pyengine.recipes.schema.prompted_recipe import PromptsSpec


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_other_fields_become_columns(tmp_path):
    file = write(
        tmp_path / "p.jsonl", [{"q": "a", "answer": 1}, {"q": "b", "level": "x", "prompt": "no"}]
    )
    loaded = load_prompts(PromptsSpec(file, "q"))
    assert loaded.prompts == ["a", "b"]
    assert loaded.columns == {"answer": [1, None], "level": [None, "x"]}
    assert loaded.places == [f"{file}:1", f"{file}:2"]


def test_a_missing_field_names_file_and_line(tmp_path):
    file = write(tmp_path / "p.jsonl", [{"q": "a"}, {"p": "b"}])
    with pytest.raises(DataError, match=r"p.jsonl:2\] q must be a column but the columns are p"):
        load_prompts(PromptsSpec(file, "q"))


def test_messages_name_the_field_that_the_file_has(tmp_path):
    file = write(tmp_path / "p.jsonl", [{"q": "a"}, {"q": ""}])
    with pytest.raises(DataError, match=r"p.jsonl:2\] q must not be empty but is ''"):
        load_prompts(PromptsSpec(file, "q"))


def test_prompt_text_is_the_last_message():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert (prompt_text("t"), prompt_text(messages), prompt_text([1, 2])) == ("t", "u", "[1, 2]")
