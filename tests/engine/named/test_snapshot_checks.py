"""What snapshots refuse, by name and before anything has changed."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from snapshot_engines import (
    GROUPS,
    LORA,
    move,
    scored,
)
from tiny_batches import preferences

import pyengine as pe
from pyengine.errors import CheckpointError, ConfigError, RequestError
from pyengine.objectives import DPO

# What is refused

NAME_RULE = "name must be 1 to 100 of A-Z a-z 0-9 _ . - and not 'policy' or 'reference' but is "


@pytest.mark.parametrize(
    "name", ["", "a/b", "..\\x", "policy", "reference", "ä", "a b", "x" * 101, None, 5, "a\n"]
)
def test_names_are_checked(engine, name):
    for call in (engine.snapshot, lambda n: engine.combine({"policy": 1.0}, n)):
        with pytest.raises(RequestError) as caught:
            call(name)
        assert str(caught.value).endswith(f"{NAME_RULE}{name!r:.200}")
    assert engine.snapshots == []


def test_nothing_is_overwritten_unasked(engine):
    engine.snapshot("a")
    before = scored(engine)
    move(engine)
    for call in (engine.snapshot, lambda n: engine.combine({"policy": 1.0}, n)):
        with pytest.raises(RequestError, match="'a' must be new but exists"):
            call("a")
    assert torch.equal(scored(engine, "a"), before)
    engine.snapshot("a", overwrite=True)
    assert torch.equal(scored(engine, "a"), scored(engine))
    assert engine.snapshots == ["a"]


@pytest.mark.parametrize("call", ["drop_snapshot", "load_snapshot", "set_reference"])
@pytest.mark.parametrize("name", ["b", "policy", "reference", None])
def test_unknown_names(engine, call, name):
    engine.snapshot("a")
    with pytest.raises(RequestError) as caught:
        getattr(engine, call)(name)
    assert str(caught.value) == f"[{call}] name must be a snapshot's (a) but is {name!r}"


def test_models_that_are_not_there(engine):
    engine.snapshot("a")
    rule = "model must be 'policy', 'reference' or a snapshot (a) but is 'b'"
    for who, call in (
        ("score", lambda: engine.score(GROUPS, model="b")),
        ("generate", lambda: engine.generate([[5]], models={"b": 1.0})),
    ):
        with pytest.raises(RequestError) as caught:
            call()
        assert str(caught.value) == f"[{who}] {rule}"
    for name, there in {"a": True, "b": False, "reference": True, "policy": False}.items():
        assert engine._learner.has_model(name) is there


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({}, "models must map names to coefficients"),
        (["a"], "models must map names to coefficients"),
        ({"b": 1.0}, "name must be a snapshot's (a) but is 'b'"),
        ({"reference": 1.0}, "models must be 'policy' and snapshots but holds 'reference'"),
        *[
            ({"a": c}, f"models['a'] must be in [-1e6, 1e6] but is {c!r}")
            for c in (float("nan"), float("inf"), "1", None, True)
        ],
        ({"a": 1.0, "policy": 0.5}, "coefficients must add up to 1, or norms and embeddings"),
        ({"a": 1.0, "policy": -1.0}, "coefficients must add up to 1, or norms and embeddings"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_combinations_that_cannot_be_made(engine, mix, message):
    engine.snapshot("a")
    with pytest.raises(RequestError) as caught:
        engine.combine(mix, "c")
    assert str(caught.value).startswith(f"[combine] {message}")
    assert engine.snapshots == ["a"]


@pytest.mark.parametrize(
    ("names", "weights"),
    [([], None), ("a", None), (["a", "a"], None), (["a"], [1, 2]), (["a"], [0]), (["a"], [-1])],
    ids=str,
)
def test_averages_that_cannot_be_made(engine, names, weights):
    engine.snapshot("a")
    with pytest.raises(RequestError, match=r"^\[average\] names must be different ones"):
        engine.average(names, "c", weights)


def test_weights_that_are_not_finite_are_not_kept(engine):
    engine.snapshot("a")
    before = scored(engine)
    with torch.no_grad():
        engine._network.decoder.final_norm.weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"final_norm\.weight must be finite but is not"):
        engine.snapshot("a", overwrite=True)
    assert torch.equal(scored(engine, "a"), before)
    [file] = engine._snapshots.files()["a"][0].parent.iterdir()
    assert file.name == "a.safetensors"


def test_the_reference_cannot_be_dropped_and_moments_are_a_word(engine):
    engine.snapshot("a")
    engine.set_reference("a")
    with pytest.raises(RequestError, match="'a' is the reference: set another one first"):
        engine.drop_snapshot("a")
    with pytest.raises(RequestError, match="moments must be 'keep' or 'reset' but is 'zero'"):
        engine.load_snapshot("a", moments="zero")
    engine.forward_backward(preferences(), DPO())
    with pytest.raises(RequestError, match="there are gradients that no step has applied"):
        engine.load_snapshot("a")


def test_a_callback_cannot_change_what_is_sampled_from(engine):
    engine.snapshot("a")
    refused = []

    def call(*counts: int) -> None:
        for change in (
            lambda: engine.drop_snapshot("a"),
            lambda: engine.set_reference("a"),
            lambda: engine.load_snapshot("a"),
            lambda: engine.snapshot("a", overwrite=True),
        ):
            with pytest.raises(RequestError, match="still running"):
                change()
            refused.append(1)

    engine.generate([[5]], pe.SamplingParams(max_tokens=2), models={"a": 1.0}, progress=call)
    assert len(refused) >= 4
    assert engine.snapshots == ["a"]


def test_an_engine_without_masters_takes_none_but_uses_them(make_engine, tmp_path):
    exact = make_engine(snapshot_folder=tmp_path)
    move(exact)
    exact.snapshot("a")
    engine = make_engine(dtype="int8", snapshot_folder=tmp_path)
    for call in (engine.snapshot, engine.load_snapshot, lambda n: engine.combine({"a": 1}, n)):
        with pytest.raises(RequestError, match="an engine of dtype 'int8' only samples and scores"):
            call("c")
    assert (scored(engine, "a") - scored(exact)).abs().max() < 0.2
    engine.set_reference("a")
    assert torch.equal(scored(engine, "a"), scored(engine, "reference"))


def test_files_of_others_are_refused(make_engine, tmp_path):
    make_engine(snapshot_folder=tmp_path).snapshot("a")
    with pytest.raises(CheckpointError) as caught:
        make_engine(snapshot_folder=tmp_path, lora=LORA)
    assert str(caught.value) == f"[{tmp_path / 'a.safetensors'}] is a snapshot of another model"
    safetensors.torch.save_file({"x": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError) as caught:
        make_engine(snapshot_folder=tmp_path)
    assert str(caught.value) == f"[{tmp_path / 'b.safetensors'}] is not a snapshot"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^\[Engine\] snapshot_folder .* must be a folder"):
        make_engine(snapshot_folder=tmp_path / "file")


def test_adapters_of_another_base_or_scale_are_refused(make_engine, tmp_path):
    engine = make_engine(lora=LORA, snapshot_folder=tmp_path / "s")
    engine.snapshot("a")
    with torch.no_grad():
        engine._network.decoder.final_norm.weight.mul_(2)
    engine.save_pretrained(tmp_path / "other")
    other = pe.LoraConfig(r=LORA.r, alpha=7, targets=LORA.targets)
    for make in (
        lambda: make_engine(lora=other, snapshot_folder=tmp_path / "s"),
        lambda: pe.Engine.from_pretrained(
            tmp_path / "other", lora=LORA, snapshot_folder=tmp_path / "s"
        ),
    ):
        with pytest.raises(CheckpointError, match=r"a\.safetensors\] is a snapshot of another"):
            make()
    assert make_engine(lora=LORA, dtype="bfloat16", snapshot_folder=tmp_path / "s").snapshots
