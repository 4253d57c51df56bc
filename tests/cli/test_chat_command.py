"""`pyengine chat` as its users run it: through a pipe, and on a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
from fresh_python import package_folder

from pyengine.cli.main import main
from pyengine.engine import Engine, SamplingParams

ENVIRONMENT = os.environ | {"PYTHONPATH": str(package_folder().parent), "PYTHONUTF8": "1"}
FLAGS = ["--dtype", "float32", "--max-tokens", "12", "--seed", "3"]
PARAMS = SamplingParams(max_tokens=12, seed=3)


def command(model, *more):
    return [sys.executable, "-P", "-m", "pyengine", "chat", "--model", str(model), *FLAGS, *more]


def pipe(model, lines, *more):
    return subprocess.run(
        command(model, *more),
        input="".join(line + "\n" for line in lines),
        capture_output=True,
        encoding="utf-8",
        env=ENVIRONMENT,
        check=False,
    )


def message(role, content):
    return {"role": role, "content": content}


class Oracle:
    """The answers that the engine gives to whole conversations."""

    def __init__(self, model):
        self.engine = Engine.from_pretrained(model, dtype="float32", reference="none")

    def __call__(self, messages, index):
        [group] = self.engine.generate([messages], PARAMS, request_ids=[index])
        return group.responses[0].text


def test_a_pipe_has_a_turn_a_line_with_the_history_in_the_template(tiny_model, tmp_path):
    file = tmp_path / "talk.jsonl"
    lines = ["hello", "", "and then?", "/undo", "again", "/system be brief", "  /who?"]
    done = pipe(tiny_model, [*lines, f"/save {file}", "/reset", "new", f"/save {file}"])
    answer, history, answers = Oracle(tiny_model), [message("user", "hello")], []
    for index, question in enumerate(["and then?", "again", "/who?"]):
        answers.append(answer(history, index))
        if index == 1:  # the turn that /undo takes back
            history[2:] = []
        else:
            history.append(message("assistant", answers[-1]))
        history.append(message("user", question))
    history = [message("system", "be brief"), *history]
    answers.append(answer(history, 3))
    history.append(message("assistant", answers[-1]))
    fresh = [message("system", "be brief"), message("user", "new")]
    answers.append(answer(fresh, 4))
    fresh.append(message("assistant", answers[-1]))
    assert (done.returncode, done.stdout) == (0, "".join(a + "\n" for a in answers))
    assert "[7 messages appended to" in done.stderr
    saved = [json.loads(line) for line in file.read_text().splitlines()]
    assert saved == [{"messages": history}, {"messages": fresh}]


def test_quit_ends_and_what_is_cut_is_said(tiny_model):
    done = pipe(tiny_model, ["hello", "/quit", "never"], "--min-tokens", "12", "--system", "s")
    assert done.returncode == 0
    assert done.stderr == "[cut at --max-tokens 12]\n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/nope", "[chat] a command must be one of /reset, /system, /undo, /save, /quit but is"),
        ("/save", "[chat] /save must name a file but names none"),
        ("/save x.jsonl", "[chat] /save must have messages to save but there are none"),
        ("/undo", "[chat] there must be a turn to undo but there is none"),
        ("/undo 2", "[chat] /undo must stand alone but is followed by '2'"),
        ("w" * 600, "[chat] conversation must fit 500 tokens, the model's context less --max-tok"),
    ],
)
def test_an_error_in_a_pipe_is_one_sentence_and_ends_it(
    tiny_model, monkeypatch, capsys, line, sentence
):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\nhello\n"))
    assert main(["chat", "--model", str(tiny_model), *FLAGS]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"pyengine: {sentence}")
    assert printed.err.count("\n") == 1


def test_bytes_that_are_no_text_are_one_sentence(tiny_model, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    assert main(["chat", "--model", str(tiny_model), *FLAGS]) == 2
    assert "[chat] stdin must be UTF-8 text but" in capsys.readouterr().err


def test_overlong_history_leaves_its_oldest_turn_out_and_says_so(tiny_model):
    """A turn is about 240 of the 500 tokens: the third prompt has room for one before it."""
    questions = [letter * 190 for letter in "abc"]
    done = pipe(tiny_model, questions, "--overlong", "drop_oldest")
    answer, history, answers = Oracle(tiny_model), [], []
    for index, question in enumerate(questions):
        history.append(message("user", question))
        answers.append(answer(history[2:] if index == 2 else history, index))
        history.append(message("assistant", answers[-1]))
    assert (done.returncode, done.stdout) == (0, "".join(a + "\n" for a in answers))
    assert done.stderr.count("[the 2 oldest messages do not fit and are left out]") == 1
    assert done.stderr.endswith("[1 of 3 answers did not see the whole conversation]\n")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "--model must have a tokenizer but"),
        (["tokenizer_config.json"], "--model must have a chat template but"),
    ],
)
def test_a_model_without_what_a_chat_needs_is_refused_before_it_is_loaded(
    tiny_model, tmp_path, monkeypatch, capsys, missing, sentence
):
    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    for name in [*missing, "model.safetensors"]:
        (folder / name).unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", "--model", str(folder), *FLAGS]) == 2
    assert sentence in capsys.readouterr().err


# On a terminal


class Keys(io.StringIO):
    def isatty(self):
        return True


class Interrupts(io.StringIO):
    """Ctrl-C is pressed while the third piece of an answer is shown."""

    def __init__(self):
        super().__init__()
        self.pieces = 0

    def flush(self):
        self.pieces += 1
        if self.pieces == 3:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_stops_the_answer_and_not_the_program(tiny_model, tmp_path, monkeypatch, capsys):
    file = tmp_path / "talk.jsonl"
    monkeypatch.setattr("sys.stdin", Keys(f"hello\n/save {file}\nmore\n"))
    monkeypatch.setattr("sys.stdout", Interrupts())
    before = signal.getsignal(signal.SIGINT)
    argv = ["chat", "--model", str(tiny_model), "--dtype", "float32", "--seed", "3"]
    assert main([*argv, "--max-tokens", "100", "--min-tokens", "100"]) == 0
    assert signal.getsignal(signal.SIGINT) is before
    errors = capsys.readouterr().err
    assert "[stopped; what there is of the answer stays in the conversation]" in errors
    assert "[cut at --max-tokens 100]" in errors  # the second answer was not stopped
    [row] = [json.loads(line) for line in file.read_text().splitlines()]
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
    assert 1 <= len(row["messages"][1]["content"]) <= 3


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, argv):
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=ENVIRONMENT | {"TERM": "dumb"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.screen = b""

    def wait_for(self, text, timeout_s=60.0):
        """What is shown up to `text`, which is then behind us."""
        deadline = time.monotonic() + timeout_s
        os.set_blocking(self.master, False)
        while text.encode() not in self.screen:
            assert time.monotonic() < deadline, (text, self.screen)
            try:
                self.screen += os.read(self.master, 4096)
            except BlockingIOError:
                time.sleep(0.01)
        seen, _, self.screen = self.screen.partition(text.encode())
        return seen.decode(errors="replace")

    def type(self, keys):
        os.write(self.master, keys.encode())


def test_on_a_terminal_errors_do_not_end_it_and_ctrl_d_does(tiny_model):
    terminal = Terminal(command(tiny_model))
    try:
        assert re.search(r"512 tokens of context; /reset, .*/quit\]", terminal.wait_for("> "))
        terminal.type("/nope\n")
        assert "pyengine: [chat] a command must be one of /reset" in terminal.wait_for("> ")
        terminal.type("half a line\x03")
        assert "(Ctrl-D or /quit ends)" in terminal.wait_for("> ")
        terminal.type("hello\n")
        answer = Oracle(tiny_model)([message("user", "hello")], 0)
        shown = terminal.wait_for("\n> ")
        assert "hello" in shown
        printable = re.findall(r"[!-~]{2,}", answer)
        assert all(word in shown for word in printable)
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
