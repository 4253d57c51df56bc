"""What a reward model refuses, before any work and by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny_models import save_hf
from safetensors.torch import load_file, save_file
from tiny_batches import group

import pyengine as pe
from pyengine.errors import ConfigError, ModelFileError, PyengineError, RequestError


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    save_hf("llama", folder)
    return folder


@pytest.fixture(scope="module")
def model(llama: Path) -> pe.RewardModel:
    return pe.RewardModel.from_pretrained(llama, dtype="float32")


def batch(*comparisons: pe.Comparison) -> pe.Preferences:
    return pe.Preferences([group(3, [2, 4, 3], 1, 97)], comparisons)


SURE = batch(pe.Comparison(0, 0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": 0}, "[RewardModel] outputs must be an integer >= 1 or None but is 0"),
        ({"ensemble": True}, "[RewardModel] ensemble must be an integer >= 1 or None but is True"),
        ({"outputs": 2, "ensemble": 3}, "[RewardModel] outputs or ensemble must be 1 but they are"),
        ({"dtype": "int8"}, "[RewardModel] dtype must be 'auto', 'float32' or 'bfloat16'"),
        ({"lora": 4}, "[RewardModel] lora must be a LoraConfig or None but is 4"),
        ({"beta": 1}, "[RewardModel] beta is not a setting"),
        ({"eps": -1.0}, "[optimizer] eps must be finite and > 0 but is -1.0"),
    ],
)
def test_settings(llama: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pe.RewardModel.from_pretrained(llama, **options)
    assert str(caught.value).startswith(message)


def test_a_family_without_such_a_class_in_transformers(tmp_path: Path) -> None:
    save_hf("granite", tmp_path)
    with pytest.raises(ConfigError) as caught:
        pe.RewardModel.from_pretrained(tmp_path)
    assert str(caught.value) == (
        f"[{tmp_path}] a head on hidden states needs a family with a ...ForSequenceClassification "
        "in transformers but granite has none"
    )


def test_a_gpu(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pyengine.engine.reward.reward_loading.device_of", lambda device: torch.device(device)
    )
    with pytest.raises(ConfigError) as caught:
        pe.RewardModel.from_pretrained(llama, device="cuda")
    assert str(caught.value) == (
        "[RewardModel] device must be 'cpu', whose kernels read hidden states, but is 'cuda'"
    )


@pytest.mark.parametrize(
    ("given", "loss", "options", "message"),
    [
        ([], "bradley_terry", {}, "[update] batch must be Preferences but is list"),
        (SURE, "dpo", {}, "[update] loss must be one of bradley_terry, soft_bt, plackett_luce, "),
        (SURE, "gpm", {}, "[update] gpm needs a head of an even number of outputs but this one"),
        (SURE, "mean_variance", {}, "[update] mean_variance needs a head of two outputs, a mean"),
        (SURE, "regression", {}, "[update] loss 'regression' needs targets: regression alone"),
        (SURE, "soft_bt", {"targets": [[1, 2, 3]]}, "[update] loss 'soft_bt' takes no targets"),
        (SURE, "bradley_terry", {"beta": 1}, "[reward_loss] "),
        (SURE, "bradley_terry", {"center": -1}, "[bradley_terry] center must be >= 0 and finite"),
        (
            SURE,
            "bradley_terry",
            {"use_margins": True},
            "[update] comparisons[0].margin must be a number with use_margins but is None",
        ),
        (
            batch(pe.Comparison(0, 0, 1, margin=1.0)),
            "soft_bt",
            {"use_margins": True},
            "[update] use_margins is of bradley_terry but loss is 'soft_bt'",
        ),
        (
            batch(pe.Comparison(0, 0, 1, margin=1.0)),
            "bradley_terry",
            {},
            "[update] comparisons[0].margin must be None without use_margins but is 1.0",
        ),
        (
            SURE,
            "plackett_luce",
            {"use_margins": True},
            "[update] use_margins is of bradley_terry but loss is 'plackett_luce'",
        ),
        (
            batch(pe.Comparison(0, 0, 1, probability=0.7)),
            "bradley_terry",
            {},
            "[update] comparisons[0].probability must be 1 for bradley_terry but is 0.7: soft_bt",
        ),
        (
            batch(pe.Comparison(0, 0, 1, weight=0.0)),
            "bradley_terry",
            {},
            "[update] the batch must hold at least one comparison of positive weight but holds",
        ),
        (
            batch(pe.Comparison(0, 0, 1), pe.Comparison(0, 0, 2)),
            "plackett_luce",
            {},
            "[update] plackett_luce needs one order of groups[0] but its comparisons leave open "
            "which of responses [1, 2] is better",
        ),
        (
            batch(*(pe.Comparison(0, i, (i + 1) % 3) for i in range(3))),
            "plackett_luce",
            {},
            "[update] plackett_luce needs comparisons that rank groups[0] but they go round: ",
        ),
        (
            SURE,
            "regression",
            {"targets": [[1.0]]},
            "[update] targets must have a number or None for each response, [3] a group, but has",
        ),
        (
            SURE,
            "regression",
            {"targets": [[float("nan"), 1, 1]]},
            "[update] targets[0][0] must be finite but is nan",
        ),
        (
            SURE,
            "regression",
            {"targets": [[None] * 3]},
            "[update] the batch must hold at least one target but holds none",
        ),
        (
            pe.Preferences([pe.Group([1], [pe.Response([])])], []),
            "regression",
            {"targets": [[1.0]]},
            "[update] targets[0][0] must be None for a response without tokens but is 1.0",
        ),
        (
            pe.Preferences([group(3, [2, 4], 1, 500)], [pe.Comparison(0, 0, 1)]),
            "bradley_terry",
            {},
            "[update] groups[0].",
        ),
    ],
)
def test_updates(
    model: pe.RewardModel, given: Any, loss: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PyengineError) as caught:
        model.update(given, loss, **options)
    assert str(caught.value).startswith(message)
    assert dict(model.named_gradients()) == {}
    assert model.step_count == 0


def test_rewards_of_ids_that_are_none(model: pe.RewardModel) -> None:
    with pytest.raises(RequestError) as caught:
        model.rewards([pe.Group([1], [pe.Response([97])])])
    assert str(caught.value) == (
        "[rewards] groups[0].responses[0].token_ids must hold integers in [0, 97) "
        "but responses[0].token_ids[0] = 97"
    )


@pytest.fixture
def saved(model: pe.RewardModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("score", "config", "message"),
    [
        (torch.ones(1, 5), {}, "tensor score.weight must have shape (labels, 48) but has (1, 5)"),
        (torch.full((1, 48), float("nan")), {}, "tensor score.weight must be finite but holds NaN"),
        (
            torch.ones(2, 48),
            {},
            "tensor score.weight must have a row for each of the config's 1 labels but has 2",
        ),
        (
            None,
            {"pyengine_head": {"outputs": 2, "ensemble": 1}},
            "outputs x ensemble of pyengine_head must be the 1 rows of score.weight but is 2 x 1",
        ),
        (None, {"pyengine_head": 7}, "pyengine_head must name outputs and ensemble but is 7"),
    ],
)
def test_files(saved: Path, score: Any, config: dict[str, Any], message: str) -> None:
    if score is not None:
        tensors = load_file(saved / "model.safetensors")
        save_file(tensors | {"score.weight": score}, saved / "model.safetensors")
    settings = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(settings | config))
    with pytest.raises(ModelFileError) as caught:
        pe.RewardModel.from_pretrained(saved)
    assert str(caught.value).startswith(f"[{saved}] {message}")


def test_another_head_than_the_folders(saved: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        pe.RewardModel.from_pretrained(saved, outputs=2)
    assert str(caught.value) == (
        "[RewardModel] outputs and ensemble must be those of score.weight, which has 1 rows "
        "(outputs 1, heads 1), but are 2 and None"
    )


def test_an_engine_says_that_a_head_is_none_of_its_tensors(saved: Path) -> None:
    with pytest.raises(PyengineError, match=r"score\.weight does not: pe\.RewardModel"):
        pe.Engine.from_pretrained(saved)
