from __future__ import annotations

import sys

import pytest

from pyengine.errors import ConfigError, MissingDependencyError
from pyengine.recipes.schema import rewards
from pyengine.recipes.schema.rewards import load_reward


def test_vader_tells_good_from_bad_in_text_and_in_messages():
    pytest.importorskip("vaderSentiment")
    vader = load_reward("vader", allow_code=False)
    good, bad, neutral = vader(["I love this wonderful day!", "This is horrible.", "A table."])
    assert good > 0.8
    assert bad < -0.5
    assert neutral == 0.0
    assert vader([[{"role": "assistant", "content": "I love this wonderful day!"}]]) == [good]


def test_shares_of_positive_and_negative_words():
    pytest.importorskip("vaderSentiment")
    positive, negative = (
        load_reward(name, allow_code=False) for name in ("vader_positive", "vader_negative")
    )
    texts = ["I love this wonderful day!", "This is horrible.", "A table."]
    (good, low, none), (few, bad, nothing) = positive(texts), negative(texts)
    assert good > 0.5 > low == none == few == nothing == 0.0
    assert bad > 0.5
    assert [f.__name__ for f in (positive, negative)] == ["vader_positive", "vader_negative"]


def test_brevity_by_hand():
    """No word 1, 5 words 1 / 1.25 = 0.8, 20 words 1 / 2."""
    brevity = load_reward("brevity", allow_code=False)
    assert brevity(["", "one two\nthree  four five", " ".join("w" * 20)]) == [1.0, 0.8, 0.5]
    assert brevity([[{"role": "assistant", "content": "a b c d e"}]]) == [0.8]


def test_vader_without_its_package_says_what_to_install(monkeypatch):
    rewards._vader_analyzer.cache_clear()
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "pyengine\[demo\]"'):
        load_reward("vader", allow_code=False)


def test_code_runs_only_when_allowed(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(completions): return [1.0]\n")
    with pytest.raises(
        ConfigError, match=r"is Python code, which runs only where it is allowed.*--allow-code"
    ):
        load_reward(f"{file}:f", allow_code=False)
    assert not (tmp_path / "ran").exists()
    assert load_reward(f"{file}:f", allow_code=True)([""]) == [1.0]
    assert (tmp_path / "ran").exists()


def test_a_function_of_a_module():
    assert load_reward("math:fsum", allow_code=True)([1, 2]) == 3.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "happy",
            "function must be one of brevity, vader, vader_negative, vader_positive, "
            "'file.py:function' or 'module:function' but is 'happy'",
        ),
        ("none.py:f", "none.py must be a Python file but there is no such file"),
        ("no_such_module_x:f", "module no_such_module_x must import but ModuleNotFoundError"),
        ("math:nothing", "math must define a function nothing but does not"),
    ],
)
def test_what_cannot_be_found(function, message):
    with pytest.raises(ConfigError, match=message):
        load_reward(function, allow_code=True)


def test_a_file_that_fails_names_its_error(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=r"bad.py must import but ZeroDivisionError"):
        load_reward(f"{tmp_path / 'bad.py'}:f", allow_code=True)
