"""`pyengine generate`: what its flags become, what it prints, and the bar of one call."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import pytest

from pyengine.cli import generate
from pyengine.cli.main import main
from pyengine.cli.progress import CallBar
from pyengine.engine import SamplingParams
from pyengine.preferences import Group, Response

PLAIN = Response([4, 5], [-0.5, -1.0], [0.0, 0.0], "ab", "stop", kept_mass=[1.0, 1.0])
FLAGS = {
    "n": "2",
    "temperature": "0.5",
    "top_k": "3",
    "top_p": "0.9",
    "min_p": "0.1",
    "max_tokens": "9",
    "min_tokens": "4",
    "seed": "7",
    "repetition_penalty": "1.25",
    "presence_penalty": "-0.5",
    "frequency_penalty": "0.25",
    "top_logprobs": "2",
}


class Stub:
    """Answers with one response, and keeps the parameters it was given."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self.params: list[SamplingParams] = []

    def generate(self, prompts, params, progress):
        self.params.append(params)
        progress(2, 1, 1)
        return [Group([1], [self.response], prompt=p) for p in prompts]


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*argv: str, response: Response = PLAIN):
        stub = Stub(response)
        monkeypatch.setattr(generate.Engine, "from_pretrained", lambda *_, **__: stub)
        code = main(["generate", "--model", "m", *argv, "hello"])
        return code, stub.params, capsys.readouterr()

    return call


def test_without_flags_the_defaults(run):
    code, params, printed = run()
    assert (code, params) == (0, [SamplingParams()])
    assert (printed.out, printed.err) == ("ab\n", "")


def test_every_flag_reaches_the_engine(run):
    argv = [part for name, value in FLAGS.items() for part in (_flag(name), value)]
    argv += ["--stop", "x", "--stop", "y", "--logit-bias", "5=-inf", "--logit-bias", "2=1.5"]
    code, [params], _ = run(*argv, "--entropy", "--json")
    assert code == 0
    assert params == SamplingParams(
        **{name: json.loads(value) for name, value in FLAGS.items()},
        stop=("x", "y"),
        logit_bias={2: 1.5, 5: -math.inf},
        entropy=True,
    )
    changed = {f.name for f in dataclasses.fields(params) if not _is_default(params, f.name)}
    api_only = {"stop_token_ids", "ignore_eos"}
    assert changed == {f.name for f in dataclasses.fields(params)} - api_only


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_default(params: SamplingParams, name: str) -> bool:
    return bool(getattr(params, name) == getattr(SamplingParams(), name))


def test_json_rows_hold_what_was_asked_for_and_nothing_more(run):
    _, _, printed = run("--json")
    row = json.loads(printed.out)
    assert list(row) == [
        "prompt_index", "sample_index", "prompt", "text", "finish_reason", "token_ids", "logprobs"
    ]  # fmt: skip
    extra = {
        "entropy": [2.0, 1.5],
        "top_logprobs": [[(4, -0.5), (1, -2.0)], [(5, -1.0), (0, -3.0)]],
    }
    known = dataclasses.replace(PLAIN, **extra)
    _, _, printed = run("--json", "--entropy", "--top-logprobs", "2", response=known)
    assert json.loads(printed.out) == row | json.loads(json.dumps(extra))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--min-tokens", "200"], "min_tokens must be an integer from 0 to max_tokens (128) but"),
        (["--repetition-penalty", "0"], "repetition_penalty must be in [1e-30, 1e30] but is 0.0"),
        (["--presence-penalty", "nan"], "presence_penalty must be in [-1e30, 1e30] but is nan"),
        (["--frequency-penalty", "inf"], "frequency_penalty must be in [-1e30, 1e30] but is inf"),
        (["--logit-bias", "5=inf"], "logit_bias[5] must be in [-1e30, 1e30] or -inf but is inf"),
        (["--logit-bias=-5=1"], "logit_bias must be a mapping of integers >= 0 but has the key -5"),
        (["--logit-bias", "5=1", "--logit-bias", "5=1"], "must name a token once but names 5 twi"),
        (["--json", "--top-logprobs", "1001"], "top_logprobs must be an integer from 0 to 1000"),
        (["--top-logprobs", "3"], "--top-logprobs must come with --json, which shows it, but"),
        (["--entropy"], "--entropy must come with --json, which shows it, but comes without"),
    ],
)  # fmt: skip
def test_a_bad_option_is_one_sentence_before_the_model_is_loaded(run, argv, message):
    code, params, printed = run(*argv)
    assert (code, params, printed.out) == (2, [], "")
    assert message in printed.err
    assert printed.err.count("\n") == 1


# --stream


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--json"], "--stream must come without --json but comes with it"),
        (["--n", "2"], "--stream must have --n 1 but has --n 2"),
        (["a second prompt"], "--stream must have one prompt but has 2"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_the_model_is_loaded(run, argv, message):
    code, params, printed = run("--stream", *argv)
    assert (code, params, printed.out) == (2, [], "")
    assert message in printed.err


class Flushes(io.StringIO):
    """What was there at each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def flush(self) -> None:
        self.seen.append(self.getvalue())


def test_stream_prints_the_same_text_piece_by_piece(tiny_model, monkeypatch, capsys):
    argv = ["generate", "--model", str(tiny_model), "--dtype", "float32", "--max-tokens", "24"]
    argv += ["--seed", "5", "--raw", "Hello"]
    assert main(argv) == 0
    whole = capsys.readouterr().out
    terminal, errors = Flushes(), Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", errors)
    assert main([*argv, "--stream"]) == 0
    monkeypatch.undo()
    assert terminal.getvalue() == whole
    assert len(set(terminal.seen)) > 5
    assert errors.getvalue() == ""  # no bar among the words


@pytest.mark.parametrize("text", ["5", "a=1", "5=", "=1", "5=x", "1.5=2", "5=1=2"])
def test_a_bias_is_an_id_and_a_number(run, capsys, text):
    with pytest.raises(SystemExit) as caught:
        run("--logit-bias", text)
    assert caught.value.code == 2
    assert f"argument --logit-bias: must be ID=VALUE but is {text!r}" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_counts_tokens_and_sequences_and_goes_away():
    stream = Terminal()
    with CallBar(4, "responses", stream) as bar:
        bar._bar.mininterval = 0  # every call shows
        bar.sampled(3, 0, 4)
        bar.sampled(8, 2, 4)
    shown = stream.getvalue().split("\r")
    assert any("0/4" in s and "3 tokens, " in s for s in shown)
    assert any("2/4" in s and " responses/s" in s and "8 tokens, " in s for s in shown)
    assert stream.getvalue().endswith("\r")
    assert shown[-2].strip() == ""


def test_the_bar_goes_away_after_an_error():
    stream = Terminal()
    bar = CallBar(3, "prompts", stream)
    with pytest.raises(ZeroDivisionError), bar:
        bar.scored(1 // 0, 3)
    assert stream.getvalue().split("\r")[-2].strip() == ""


def test_no_bar_without_a_terminal():
    stream = io.StringIO()
    with CallBar(2, "prompts", stream) as bar:
        bar.scored(1, 2)
        bar.sampled(5, 2, 2)
    assert stream.getvalue() == ""


def test_generate_and_score_show_it_on_a_terminal_only(tmp_path, tiny_model, monkeypatch, capsys):
    rows = tmp_path / "s.jsonl"
    rows.write_text('{"prompt": "p", "completion": "x"}\n')
    for command in (["generate", "--max-tokens", "3", "hi"], ["score", str(rows)]):
        argv = [command[0], "--model", str(tiny_model), *command[1:]]
        assert main(argv) == 0
        quiet = capsys.readouterr()
        assert quiet.err == ""
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        assert main(argv) == 0
        monkeypatch.undo()
        assert capsys.readouterr().out == quiet.out
        assert "0/1" in terminal.getvalue()
