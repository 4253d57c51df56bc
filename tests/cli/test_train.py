"""`pyengine train` as a user runs it: rows, an objective's name, and a folder that comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_python import package_folder
from safetensors import safe_open

from pyengine.cli.main import main
from pyengine.reports.writers.jsonl import read_lines

LAYOUTS = Path(__file__).resolve().parents[1] / "data" / "layouts"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count: int = 8) -> list[dict]:
    return [
        {"prompt": f"Say {i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(count)
    ]


@pytest.fixture
def train(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(objective: str, data: str, *flags: str, out: str = "run") -> int:
        return main([
            "train", objective, "--model", str(tiny_model), "--data", data, "--out", out,
            "--dtype", "float32", "--learning-rate", "1e-2", *flags,
        ])  # fmt: skip

    return run


def weights(folder: Path) -> dict[str, bytes]:
    with safe_open(folder / "model" / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def test_as_a_process_from_rows_to_a_model(tiny_model, tmp_path):
    data = write(tmp_path / "p.jsonl", pairs())
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pyengine", "train", "dpo", "--model", tiny_model,
         "--data", data, "--out", tmp_path / "run", "--batch-size", "3", "--epochs", "2",
         "--eval-split", "0.25"],
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package_folder().parent)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "6 prompts of" in result.stderr
    assert "layout pairs, 8 of 8 rows kept" in result.stderr
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["round"] for row in rows if "eval/loss" in row] == [0, 2, 4]
    assert (tmp_path / "run" / "plot.png").stat().st_size > 1000
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_the_first_pair_is_shown_as_the_model_reads_it(train, tmp_path, capsys):
    assert train("dpo", write(tmp_path / "p.jsonl", pairs(2))) == 0
    shown = capsys.readouterr().err
    assert "prompt (5 tokens, context only): 'Say 0'" in shown
    assert "chosen (7 tokens, trained): ' yes 0<|im_end|>'" in shown
    assert "rejected (6 tokens, trained): ' no 0<|im_end|>'" in shown


def test_columns_have_other_names(train, tmp_path, capsys):
    rows = [{"question": r["prompt"], "yes": r["chosen"], "no": r["rejected"]} for r in pairs()]
    data = write(tmp_path / "p.jsonl", rows)
    assert train("dpo", data, "--columns", "prompt=question,chosen=yes,rejected=no") == 0
    assert train("dpo", write(tmp_path / "q.jsonl", pairs()), out="other") == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "other")
    capsys.readouterr()
    assert train("dpo", data, out="third") == 2
    assert "p.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "objective", "flags"),
    [
        ("pairs", "dpo", ()),
        ("ultrafeedback", "simpo", ()),
        ("hh_rlhf", "dpo", ()),
        ("hh_rlhf_prompt", "ipo", ()),
        ("orca", "orpo", ()),
        ("sharegpt_pairs", "dpo", ()),
        ("sharegpt", "nll", ()),
        ("kto", "pointwise_dpo", ()),
        ("kto_mix", "kto", ()),
        ("ranked", "plackett_luce", ()),
        ("ranked_ratings", "dpo", ("--pairing", "all_pairs")),
    ],
)
def test_public_layouts_train(train, file, objective, flags):
    assert train(objective, str(LAYOUTS / f"{file}.jsonl"), *flags) == 0


def test_labelled_rows_train_objectives_of_labels(train, tmp_path):
    rows = [
        {"prompt": f"Say {i}", "completion": f" yes {i}", "label": bool(i % 2)} for i in range(6)
    ]
    assert train("kto", write(tmp_path / "k.jsonl", rows), "--batch-size", "4") == 0


def test_ranked_rows_train_lists_and_with_a_pairing_pairs(train, tmp_path):
    rows = [
        {"prompt": f"Say {i}", "completions": [" a", " bb", " ccc"], "scores": [1, 3, 2]}
        for i in range(4)
    ]
    data = write(tmp_path / "r.jsonl", rows)
    assert train("infonca", data, out="lists") == 0
    assert train("dpo", data, "--pairing", "best_worst", out="pairs") == 0
    assert train("dpo", data, out="refused") == 2


def test_what_the_rows_do_not_hold_is_refused_before_the_model_loads(train, tmp_path, capsys):
    data = write(tmp_path / "p.jsonl", pairs())
    for objective, lacks in (("kto", "labels"), ("grpo", "rewards"), ("inpo", "snapshots")):
        assert train(objective, data) == 2
        assert lacks in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_rows_over_the_context_are_named_before_the_model_loads(train, tmp_path, capsys):
    rows = [*pairs(2), {"prompt": "x" * 600, "chosen": " a", "rejected": " b"}]
    data = write(tmp_path / "p.jsonl", rows)
    assert train("dpo", data) == 2
    assert "p.jsonl:3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train("dpo", data, "--overlong", "drop") == 0
    assert "1 dropped overlong" in capsys.readouterr().err


def test_resuming_and_flags_over_a_recipe(train, tmp_path, tiny_model, capsys):
    data = write(tmp_path / "p.jsonl", pairs())
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"loop: offline\nmodel: {tiny_model}\ndata: p.jsonl\nbatch_size: 2\nepochs: 2\n"
        "engine: {dtype: float32, learning_rate: 1e-2}\nobjective: {name: ipo, tau: 0.2}\n"
    )
    assert main(["train", "dpo", "--recipe", str(recipe), "--out", "a", "--set", "epochs=1"]) == 0
    assert [row["round"] for row in read_lines(tmp_path / "a" / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    assert train("dpo", data, "--batch-size", "2", out="b") == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    capsys.readouterr()
    write(tmp_path / "p.jsonl", pairs(7))
    assert train("dpo", data, "--batch-size", "2", "--resume", out="b") == 2
    assert "the data must be what the run in b was started with" in capsys.readouterr().err


def test_a_recipe_of_another_loop_and_missing_flags_are_refused(train, tmp_path, capsys):
    assert main(["train", "dpo", "--recipe", "demo"]) == 2
    assert "loop must be offline but is online" in capsys.readouterr().err
    assert main(["train", "dpo", "--data", "p.jsonl"]) == 2
    assert "--model must be given" in capsys.readouterr().err
