"""Public layouts: what each fixture's rows train, in tokens, and how a layout is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyengine.data.formats import read_rows
from pyengine.data.layouts import LAYOUTS, canonical_rows, parse_columns
from pyengine.data.validate import validate_rows
from pyengine.errors import ConfigError, DataError
from pyengine.preferences.groups import Preferences

FIXTURES = Path(__file__).parent / "layouts"
END = "<|im_end|>"


def chat(*turns: tuple[str, str]) -> str:
    """A prompt as the fixtures' tokenizer has it: ChatML, up to the assistant's turn."""
    said = "".join(f"<|im_start|>{role}\n{text}{END}\n" for role, text in turns)
    return f"{said}<|im_start|>assistant\n"


class Engine:
    max_positions = 4096

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


def batch(tokenizer: Any, name: str, **options: Any) -> Preferences:
    rows = read_rows(FIXTURES / f"{name}.jsonl")
    return Preferences.from_rows(rows, Engine(tokenizer), **options)


def texts(tokenizer: Any, batch: Preferences) -> list[tuple[str, list[str]]]:
    """(prompt, [responses]) of each group, decoded from its ids with all special tokens."""

    def text(ids: list[int]) -> str:
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        assert tokenizer.encode(decoded, add_special_tokens=False) == ids
        return decoded

    return [(text(g.prompt_ids), [text(r.token_ids) for r in g.responses]) for g in batch.groups]


RHYME = [("user", "Hi"), ("assistant", "Hi. How can I help?"), ("user", "Rhyme with sea.")]
HELLO = [
    ("user", "Hello"),
    ("assistant", "Hello. What would you like to know?"),
    ("user", "How old is the moon?\n\nThe one above us."),
]
# file -> (layout, [(prompt, [trained responses])])
PAIRS = {
    "pairs": ("pairs", [
        ("The tide is", [" coming in." + END, " a kind of cheese." + END]),
        (chat(("user", "Name a bird.")), ["A heron." + END, "A spoon." + END]),
    ]),
    "ultrafeedback": ("ultrafeedback", [
        (chat(("user", "How do I dry herbs?")),
         ["Hang them in a dark, airy place." + END, "Boil them." + END]),
        (chat(("system", "Be brief."), ("user", "And basil?")),
         ["In the freezer." + END, "Basil, Basel, vessel." + END]),
        (chat(("user", "Only answers here?")), ["Yes." + END, "No." + END]),
    ]),
    "hh_rlhf": ("hh_rlhf", [
        (chat(("user", "Where do owls sleep?")),
         ["Mostly in trees." + END, "They never do." + END]),
        (chat(*HELLO), ["About 4.5 billion years." + END, "Ask it." + END]),
    ]),
    "hh_rlhf_prompt": ("hh_rlhf", [
        (chat(("user", "Is glass a liquid?")),
         ["No, an amorphous solid." + END, "Yes, drink it." + END]),
    ]),
    "orca": ("orca", [
        (chat(("system", "You explain with one example."), ("user", "What is a palindrome?")),
         ["A word read both ways, such as level." + END, "A kind of bicycle." + END]),
        (chat(("user", "What is 2 + 3?")), ["5" + END, "23" + END]),
    ]),
    "sharegpt_pairs": ("sharegpt_pairs", [
        (chat(("system", "Be kind."), ("user", "I lost my keys.")),
         ["Where did you last have them?" + END, "Your fault." + END]),
    ]),
}  # fmt: skip
# file -> (layout, [(prompt, [responses])], labels or rewards)
FEEDBACK = {
    "kto": ("kto", [("Give a colour.", [" Blue." + END, " Seven." + END])], [[True, False]]),
    "kto_mix": ("kto", [
        (chat(("user", "Spell cat.")), ["c, a, t" + END]),
        (chat(("user", "Spell dog.")), ["k, a, t" + END]),
    ], [[True], [False]]),
    "sharegpt": ("sharegpt", [
        (chat(*RHYME), ["Tea." + END]),
        (chat(("system", "Rhyme."), ("user", "Moon")), ["Table." + END]),
    ], [[True], [False]]),
    "ranked": ("ranked", [
        ("A word for rain:", [" drizzle" + END, " sand" + END, " downpour" + END]),
        (chat(("user", "A word for snow?")), ["flurry" + END, "sleet" + END]),
    ], [[3.0, 0.0, 4.5], [2.0, None]]),
    "ranked_ratings": ("ranked", [
        (chat(("user", "Name a tree.")), ["Oak." + END, "Brick." + END]),
    ], [[5.0, 1.0]]),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_trained_tokens_of_pairs(tokenizer, name):
    layout, groups = PAIRS[name]
    preferences = batch(tokenizer, name)
    assert preferences.report.layout == layout
    assert texts(tokenizer, preferences) == groups
    chosen_first = [(c.group, c.winner, c.loser) for c in preferences]
    assert chosen_first == [(g, 0, 1) for g in range(len(groups))]
    assert preferences.feedback is None


@pytest.mark.parametrize("name", FEEDBACK)
def test_trained_tokens_of_labels_and_scores(tokenizer, name):
    layout, groups, known = FEEDBACK[name]
    preferences = batch(tokenizer, name)
    assert preferences.report.layout == layout
    assert texts(tokenizer, preferences) == groups
    feedback = preferences.feedback
    assert (feedback.rewards if layout == "ranked" else feedback.labels) == known
    assert preferences.comparisons == []


def test_every_layout_has_a_fixture():
    assert {layout for layout, *_ in (PAIRS | FEEDBACK).values()} == set(LAYOUTS)


def test_further_columns_stay(tokenizer):
    [herbs, *_] = batch(tokenizer, "ultrafeedback").groups
    assert herbs.columns.keys() == {"prompt_id", "messages", "score_chosen", "score_rejected"}
    assert batch(tokenizer, "sharegpt").groups[0].columns == {"id": "c1"}
    assert batch(tokenizer, "ranked_ratings").groups[0].columns == {"source": "park"}
    assert batch(tokenizer, "hh_rlhf_prompt").groups[0].columns == {
        "response": " No, an amorphous solid."
    }


def test_columns_of_other_names(tokenizer):
    columns = parse_columns("prompt=question, chosen=yes,rejected=no")
    assert columns == {"prompt": "question", "chosen": "yes", "rejected": "no"}
    preferences = batch(tokenizer, "mapped", columns=columns)
    assert preferences.report.layout == "pairs"
    assert texts(tokenizer, preferences) == [
        ("Capital of Peru?\n", ["Lima" + END, "Paris" + END]),
    ]
    assert preferences.groups[0].columns == {"id": 7}
    orca = batch(tokenizer, "mapped", columns={"chosen": "yes", "rejected": "no"})
    assert orca.report.layout == "orca"
    assert texts(tokenizer, orca)[0][0] == chat(("user", "Capital of Peru?\n"))


def test_a_layout_that_is_named_is_not_recognised_otherwise(tokenizer):
    """A base model may train on transcripts as they stand."""
    preferences = batch(tokenizer, "hh_rlhf_prompt", layout="pairs")
    assert preferences.report.layout == "pairs"
    prompt = "\n\nHuman: Is glass a liquid?\n\nAssistant:"
    answers = [" No, an amorphous solid." + END, " Yes, drink it." + END]
    assert texts(tokenizer, preferences) == [(prompt, answers)]


def test_parquet_gives_the_same_rows(tmp_path):
    """Arrow gives every struct all fields, nested ones too, with nulls where there were none."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": [{"role": "user", "content": "a", "meta": {"x": {"y": 1}}}],
         "chosen": [{"role": "assistant", "content": "b"}],
         "rejected": [{"role": "assistant", "content": "c", "name": "n"}]},
        {"prompt": [{"role": "user", "content": "d", "meta": {"x": {"z": [{"k": 1}, {"l": 2}]}}}],
         "chosen": [{"role": "assistant", "content": "e", "meta": {"w": "f"}}],
         "rejected": [{"role": "assistant", "content": "g"}]},
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = read_rows(tmp_path / "rows.parquet")
    assert read[0]["prompt"][0]["meta"]["x"] == {"y": 1, "z": None}

    class Texts:
        """Tokens that are the messages themselves, with all that a template could read."""

        def encode_completion(self, prompt, completion):
            return [json.dumps(prompt).encode(), [*json.dumps(completion).encode()]]

        def decode(self, ids):
            return bytes(ids).decode()

        decode_completion = decode

    ids = [
        [(g.prompt_ids, [r.token_ids for r in g.responses]) for g in made.groups]
        for made in (Preferences.from_rows(each, Engine(Texts())) for each in (rows, read))
    ]
    assert ids[0] == ids[1]


# ---------------------------------------------------------------- how a layout is told

USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in [("user", "hi"), ("assistant", "good"), ("assistant", "bad")]
)
TEXTS = {"chosen": "a", "rejected": "b"}
TALK = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
SPOKEN = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
ANSWER = {"from": "gpt", "value": "x"}


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        (TEXTS | {"prompt": "p"}, "pairs"),
        (TEXTS | {"prompt": "p", "question": "q", "system": "s"}, "pairs"),
        (TEXTS | {"question": "q", "prompt": None}, "orca"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "pairs"),
        (SPOKEN | {"prompt": "p"}, "pairs"),
        (SPOKEN, "hh_rlhf"),
        (TEXTS | {"prompt": "p", "completion": "c"}, "pairs"),
        ({"prompt": "p", "completion": "c", "label": True, "scores": [1]}, "kto"),
    ],
)
def test_layouts_are_told_by_columns(row, layout):
    assert canonical_rows([row]).layout == layout


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (SPOKEN | {"question": "q"}, ("hh_rlhf", "orca")),
        (TEXTS | {"prompt": "p", "completion": "c", "label": True}, ("pairs", "kto")),
        (TEXTS | {"prompt": "p", "conversations": TALK}, ("pairs", "sharegpt_pairs")),
        (TEXTS | {"prompt": "p", "responses": ["c"], "ratings": [1]}, ("pairs", "ranked")),
    ],
)
def test_two_layouts_are_never_guessed_between(row, names):
    with pytest.raises(DataError) as caught:
        canonical_rows([row])
    assert str(caught.value).startswith("[rows[0]] columns must be those of one layout but are ")
    assert str(caught.value).endswith(": say which with layout=")
    assert all(f"{name}: " in str(caught.value) for name in names)
    for name in names:
        assert canonical_rows([row], layout=name).layout == name


def test_every_row_must_be_of_the_first_ones_layout():
    rows = [TEXTS | {"prompt": "p"}, TEXTS | {"question": "q"}]
    message = r"^\[rows\[1\]\] row must be of layout pairs like the first one but is of orca: "
    with pytest.raises(DataError, match=message):
        canonical_rows(rows)


REFUSED = [
    ({"text": "x"}, {}, "columns must be those of a layout (pairs: (prompt,) chosen, rejected; "),
    ({"prompt": "p", "id": 1}, {}, "are prompt, id; columns= may rename them"),
    (
        {"prompt": "p", "label": True},
        {},
        "completion must be a column but the columns are p",
    ),
    ({"prompt": "p", "chosen": "a"}, {}, "rejected must be a column but the columns are prompt, c"),
    (
        {"prompt": "x", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {},
        "prompt must be what a user's message of chosen says but is 'x'",
    ),
    (TEXTS | {"question": 3}, {}, "question must be a string but is int"),
    (TEXTS | {"question": ""}, {}, "question must not be empty but is ''"),
    (TEXTS | {"question": "q", "system": ["s"]}, {}, "system must be a string but is list"),
    ({"conversations": TALK[:1]}, {}, "must end with an answer to something but end with role 'us"),
    ({"conversations": "hi"}, {}, "conversations must be a list of turns but is str"),
    ({"conversations": []}, {}, "conversations must not be empty but is []"),
    ({"conversations": ["hi"]}, {}, 'conversations[0] must be a {"from", "value"} turn but is str'),
    (
        {"conversations": [*TALK, {"from": "observation", "value": "3"}]},
        {},
        "conversations[2].from must be one of system, human, user, gpt, assistant, ",
    ),
    (
        {"conversations": TALK[:1], "chosen": ANSWER, "rejected": {"from": "gpt"}},
        {},
        "rejected.value must be a string but is NoneType",
    ),
    (SPOKEN | {"chosen": "Human: a"}, {"layout": "orca"}, "question must be a column but the col"),
    (TEXTS, {"layout": "hh_rlhf"}, "chosen must begin with 'Human:' but begins 'a'"),
    (
        TEXTS | {"prompt": "\n\nHuman: a\n\nAssistant: b"},
        {},
        "prompt must end with 'Assistant:' but does not",
    ),
    (
        {"prompt": "p", "responses": ["a"], "completions": ["b"], "scores": [1]},
        {},
        "completions and responses must not both be there",
    ),
    ({"prompt": "p", "responses": ["a"]}, {"layout": "ranked"}, "scores must be a column but the"),
    (5, {}, "row must be an object of columns but is int"),
    (
        {"q": "x"},
        {"columns": {"prompt": "question"}},
        "question must be a column but the co",
    ),
]


@pytest.mark.parametrize(("row", "options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(row, options, message):
    def checked():
        laid_out = canonical_rows([row], source="mine", **options)
        return validate_rows(laid_out, laid_out.kind)

    with pytest.raises(DataError) as caught:
        checked()
    assert str(caught.value).startswith("[mine[0]")
    assert message in str(caught.value)


def test_messages_name_the_columns_of_the_file(tokenizer):
    rows = [{"q": "a", "yes": "b", "no": 3}]
    columns = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    message = r"^\[rows\[0\], prompt=q, chosen=yes, rejected=no\] rejected must be a string or a "
    with pytest.raises(DataError, match=message):
        Preferences.from_rows(rows, Engine(tokenizer), columns=columns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt", "must be like prompt=question,chosen=yes but has 'prompt'"),
        ("", "must be like prompt=question,chosen=yes but has ''"),
        ("prompt=a,prompt=b", "prompt must be named once but is named again: 'prompt=a,prompt=b'"),
        ("prompt=a,chosen=a", "'a' must be one column but is named for several"),
        ("promt=a", "name must be one of prompt, chosen, rejected, probability, margin, weight, "),
    ],
)
def test_column_maps_that_are_none(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_columns(text)
    assert str(caught.value).startswith("[columns] ")
    assert message in str(caught.value)


def test_unknown_layout():
    with pytest.raises(ConfigError, match=r"\[layout\] must be one of pairs, kto, .* but is 'dpo'"):
        canonical_rows([TEXTS], layout="dpo")
