"""Reward models beside transformers' ...ForSequenceClassification: outputs, slopes, files, bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.tiny_models import save_hf
from tiny_batches import flat, group, preferences, same_bits
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import pyengine as pe
from pyengine.engine.batch.packing import Tree, pack
from pyengine.errors import ConfigError, ModelFileError, NonFiniteError, RequestError

VOCABULARY = 97
LOSSES = {
    "bradley_terry": {},
    "soft_bt": {},
    "gpm": {"outputs": 4},
    "mean_variance": {"outputs": 2},
    "plackett_luce": {},
    "regression": {},
}
MakeModel = Callable[..., pe.RewardModel]


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = pe.get_num_threads()
    yield
    pe.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    save_hf("llama", folder)
    return folder


@pytest.fixture
def make(llama: Path) -> MakeModel:
    def make_model(**options: object) -> pe.RewardModel:
        return pe.RewardModel.from_pretrained(llama, **({"dtype": "float32"} | options))

    return make_model


def batch_of(loss: str) -> tuple[pe.Preferences, dict[str, object]]:
    """What the loss can learn from, and its keywords; outputs are read for every response."""
    batch = preferences(VOCABULARY)
    if loss == "regression":
        return batch, {"targets": [[0.5, -1.0], [None, 2.0], [1.0, None, 0.25], [None, None]]}
    if loss in ("soft_bt", "gpm"):
        return batch, {}
    certain = [pe.Comparison(c.group, c.winner, c.loser, weight=c.weight) for c in batch]
    return pe.Preferences(batch.groups, certain), {}


def oracle(folder: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()


def their_outputs(model: PreTrainedModel, groups: list[pe.Group]) -> list[list[Tensor]]:
    """(E,) of each response, each in a pass of its own."""
    return [
        [model(torch.tensor([[*g.prompt_ids, *r.token_ids]])).logits[0] for r in g.responses]
        for g in groups
    ]


def their_loss(loss: str, out: list[list[Tensor]], batch: pe.Preferences, given: dict) -> Tensor:
    """The formulas of methods.md section 5, written out."""
    weights = torch.tensor([c.weight for c in batch]).double()
    if loss == "regression":
        targets = given["targets"]
        squares = [
            (out[g][k][0] - target) ** 2
            for g, row in enumerate(targets)
            for k, target in enumerate(row)
            if target is not None
        ]
        return torch.stack(squares).mean()
    if loss == "plackett_luce":
        orders = {0: [0, 1], 1: [1, 0], 2: [2, 0, 1], 3: [1, 0]}
        each = []
        for g, order in orders.items():
            r = torch.stack([out[g][k][0] for k in order])
            each.append(sum(torch.logsumexp(r[i:], 0) - r[i] for i in range(len(order))))
        return torch.stack(each).mean()
    losses = []
    for c in batch:
        w, l = out[c.group][c.winner], out[c.group][c.loser]  # noqa: E741
        if loss == "gpm":
            z = (w[0] * l[1] - w[1] * l[0] + w[2] * l[3] - w[3] * l[2]) / 0.1
        elif loss == "mean_variance":
            spread = F.softplus(w[1]) ** 2 + F.softplus(l[1]) ** 2 + 2e-6
            z = math.sqrt(2 * math.pi) * (w[0] - l[0]) / spread.sqrt()
        else:
            z = w[0] - l[0]
        losses.append(-c.probability * F.logsigmoid(z) - (1 - c.probability) * F.logsigmoid(-z))
    return (torch.stack(losses) * weights).sum() / weights.sum()


def gradient(model: pe.RewardModel, loss: str) -> dict[str, Tensor]:
    batch, given = batch_of(loss)
    model.forward_backward(batch, loss, **given)
    return {name: g.clone() for name, g in model.named_gradients()}


@pytest.mark.parametrize(
    "case", ["llama", "llama-tied", "mistral", "qwen2", "qwen3", "smollm3", "gpt2"]
)
def test_transformers_reads_what_is_saved(case: str, tmp_path: Path) -> None:
    save_hf(case, tmp_path / "base")
    model = pe.RewardModel.from_pretrained(
        tmp_path / "base", ensemble=3, dtype="float32", learning_rate=1e-2
    )
    batch, _ = batch_of("bradley_terry")
    model.update(batch)
    model.save_pretrained(tmp_path / "saved")
    hf = oracle(tmp_path / "saved", torch.float32)
    assert type(hf).__name__.endswith("ForSequenceClassification")
    assert (hf.config.num_labels, hf.config.pad_token_id) == (3, model.pad_token_id)
    ours = model.rewards(batch.groups)
    again = pe.RewardModel.from_pretrained(tmp_path / "saved", dtype="float32")
    assert (again.outputs, again.ensemble) == (1, 3)
    for theirs, mine, back in zip(
        their_outputs(hf, batch.groups), ours, again.rewards(batch.groups), strict=True
    ):
        torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), rtol=0, atol=1e-5)
        assert torch.equal(torch.stack(mine), torch.stack(back))


@pytest.mark.parametrize("case", ["llama", "gpt2-untied", "qwen3-bias-tied"])
def test_what_transformers_saved_is_read(case: str, tmp_path: Path) -> None:
    """A folder of another's: its head, its labels, its padding."""
    causal = save_hf(case, tmp_path / "base")
    causal.config.num_labels, causal.config.pad_token_id = 4, 5
    causal.config.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    hf = oracle(tmp_path / "base", torch.float32)
    hf.save_pretrained(tmp_path / "theirs")
    model = pe.RewardModel.from_pretrained(tmp_path / "theirs", dtype="float32")
    assert (model.outputs, model.ensemble, model.pad_token_id) == (4, 1, 5)
    groups = preferences(VOCABULARY).groups
    groups[0].responses[0].token_ids[-2:] = [5, 5]  # padding, which neither reads
    for theirs, mine in zip(their_outputs(hf, groups), model.rewards(groups), strict=True):
        torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), rtol=0, atol=1e-5)
    ensemble = pe.RewardModel.from_pretrained(tmp_path / "theirs", ensemble=4, dtype="float32")
    assert torch.equal(ensemble.rewards(groups)[1][0], model.rewards(groups)[1][0])


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_without_padding_the_last_token_is_read_be_it_an_end(case: str, tmp_path: Path) -> None:
    """Of a classifier without a pad id: tokens 2 (eos), 1 (bos) and 96 may all be the last."""
    save_hf(case, tmp_path / "base")
    hf = oracle(tmp_path / "base", torch.float32)
    assert hf.config.pad_token_id is None
    hf.save_pretrained(tmp_path / "theirs")
    model = pe.RewardModel.from_pretrained(tmp_path / "theirs", dtype="float32")
    assert (model.outputs, model.pad_token_id) == (2, None)
    groups = [pe.Group([5, 6, 7], [pe.Response([8, 9, end]) for end in (2, 1, 96)])]
    model.save_pretrained(tmp_path / "ours")
    again = pe.RewardModel.from_pretrained(tmp_path / "ours", dtype="float32")
    assert again.pad_token_id is None
    for theirs in (hf, oracle(tmp_path / "ours", torch.float32)):
        expected = torch.stack(their_outputs(theirs, groups)[0])
        for mine in (model, again):
            torch.testing.assert_close(
                torch.stack(mine.rewards(groups)[0]), expected, rtol=0, atol=1e-5
            )


def test_a_head_is_one_whatever_the_config_calls_the_model(tmp_path: Path) -> None:
    save_hf("llama", tmp_path / "base")
    oracle(tmp_path / "base", torch.float32).save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["RewardModel"]}))
    assert pe.RewardModel.from_pretrained(tmp_path / "theirs").pad_token_id is None


def test_what_outputs_mean_is_asked_for_unless_the_folder_says(
    make: MakeModel, tmp_path: Path
) -> None:
    """Two labels are no preference embedding."""
    save_hf("llama", tmp_path / "base")
    oracle(tmp_path / "base", torch.float32).save_pretrained(tmp_path / "labels")
    labels = pe.RewardModel.from_pretrained(tmp_path / "labels")
    assert (labels.outputs, labels.reading) == (2, None)
    with pytest.raises(ConfigError, match=r"reading must be one of .* for a head of 2 outputs"):
        pe.preferences.RewardModelSource(labels)
    assert pe.preferences.RewardModelSource(labels, reading="gpm").reading == "gpm"
    for loss, reading in (("gpm", "gpm"), ("mean_variance", "mean_variance")):
        model = make(outputs=2)
        assert model.reading is None
        batch, _ = batch_of(loss)
        model.update(batch, loss)
        model.save_pretrained(tmp_path / loss)
        model.save_checkpoint(tmp_path / f"{loss}-checkpoint")
        for again in (
            pe.RewardModel.from_pretrained(tmp_path / loss),
            pe.RewardModel.load_checkpoint(tmp_path / f"{loss}-checkpoint"),
        ):
            assert again.reading == model.reading == reading
            assert pe.preferences.RewardModelSource(again).reading == reading
    file = tmp_path / "gpm" / "config.json"
    config = json.loads(file.read_text())
    config["pyengine_head"]["reading"] = "reward"
    file.write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match=r"fit 2 outputs but is 'reward'"):
        pe.RewardModel.from_pretrained(tmp_path / "gpm")
    heads = pe.RewardModel.from_pretrained(tmp_path / "labels", ensemble=2)
    assert pe.preferences.RewardModelSource(heads).reading == "reward"


@pytest.mark.parametrize("loss", LOSSES)
def test_slopes_are_autograds_in_float64(loss: str, make: MakeModel, tmp_path: Path) -> None:
    model = make(**LOSSES[loss])
    batch, given = batch_of(loss)
    model.save_pretrained(tmp_path / "saved")
    hf = oracle(tmp_path / "saved")
    expected = their_loss(loss, their_outputs(hf, batch.groups), batch, given)
    expected.backward()
    metrics = model.forward_backward(batch, loss, **given)
    assert metrics["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    ours = dict(model.named_gradients())
    theirs = {name: p.grad for name, p in hf.named_parameters()}
    assert ours.keys() == theirs.keys()
    cosine = F.cosine_similarity(flat(ours), flat(theirs), dim=0)
    print(f"{loss}: 1 - cosine = {1 - float(cosine):.1e}")
    assert cosine > 0.9999999
    largest = flat(theirs).abs().max().item()
    for name, slope in theirs.items():
        scale = max(slope.abs().max().item(), 1e-2 * largest)
        torch.testing.assert_close(ours[name].double(), slope, rtol=0, atol=2e-5 * scale, msg=name)


@pytest.mark.parametrize(
    ("loss", "dtype"), [*((loss, "float32") for loss in LOSSES), ("gpm", "bfloat16")]
)
def test_no_bit_depends_on_cuts_threads_or_recomputing(
    loss: str, dtype: str, make: MakeModel
) -> None:
    options = LOSSES[loss] | {"dtype": dtype}
    pe.set_num_threads(1)
    whole = gradient(make(**options), loss)
    pe.set_num_threads(2)
    for budget, again in ((1, False), (30, True)):
        model = make(**options, micro_batch_tokens=budget, gradient_checkpointing=again)
        assert same_bits(gradient(model, loss), whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reward_depends_on_its_own_response_alone(dtype: str, make: MakeModel) -> None:
    model = make(outputs=6, dtype=dtype)
    groups = [group(*shape, seed=i, vocab_size=VOCABULARY) for i, shape in
              enumerate([(5, [4, 7, 0]), (16, [1, 17]), (1, [3])])]  # fmt: skip
    together = model.rewards(groups)
    for g, rewards in zip(groups, together, strict=True):
        for response, reward in zip(g.responses, rewards, strict=True):
            alone = model.rewards([pe.Group(g.prompt_ids, [response])])[0][0]
            assert torch.equal(alone, reward)
            assert reward.shape == (6,)
    assert model.rewards([]) == []
    assert make().rewards(groups)[0][0].shape == ()


def test_bits_after_five_updates_are_the_same_for_every_budget(make: MakeModel) -> None:
    batch, _ = batch_of("bradley_terry")
    after = []
    for budget, threads in ((None, 2), (1, 1)):
        pe.set_num_threads(threads)
        model = make(learning_rate=1e-2, ensemble=2, micro_batch_tokens=budget)
        steps = [model.update(batch, label_smoothing=0.1, center=0.01) for _ in range(5)]
        after.append(model.rewards(batch.groups))
        assert steps[-1]["loss"] < steps[0]["loss"]
        assert steps[-1]["step"] == model.step_count == 5
    pairs = [(a, b) for one, two in zip(*after, strict=True) for a, b in zip(one, two, strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_adapters_learn_and_are_saved_as_sums(make: MakeModel, tmp_path: Path) -> None:
    model = make(lora=pe.LoraConfig(r=4), learning_rate=1e-2)
    batch, _ = batch_of("bradley_terry")
    before = {n: p.clone() for n, p in model._network.decoder.named_parameters()}
    for _ in range(5):
        metrics = model.update(batch)
    assert metrics["rewards/accuracies"] == 1
    assert same_bits(dict(model._network.decoder.named_parameters()), before)
    model.forward_backward(batch)
    names = {name for name, _ in model.named_gradients()}
    assert "score.weight" in names
    assert all("lora_" in name for name in names - {"score.weight"})
    model.save_pretrained(tmp_path / "saved")
    theirs = their_outputs(oracle(tmp_path / "saved", torch.float32), batch.groups)
    for mine, other in zip(model.rewards(batch.groups), theirs, strict=True):
        torch.testing.assert_close(
            torch.stack(mine)[:, None], torch.stack(other), atol=1e-5, rtol=0
        )


def test_a_cycle_is_learned_by_gpm_and_by_no_reward(make: MakeModel) -> None:
    """0 beats 1, 1 beats 2, 2 beats 0: rewards get at most 2 of 3 right."""
    groups = [group(4, [5, 6, 7], seed=3, vocab_size=VOCABULARY)]
    batch = pe.Preferences(groups, [pe.Comparison(0, i, (i + 1) % 3) for i in range(3)])
    found = {}
    for loss, options in (("gpm", {"outputs": 2}), ("bradley_terry", {})):
        model = make(learning_rate=1e-2, **options)
        for _ in range(20):
            metrics = model.update(batch, loss)
        found[loss] = metrics
    assert found["gpm"]["rewards/accuracies"] == 1
    assert found["gpm"]["loss"] < 0.1
    assert found["bradley_terry"]["rewards/accuracies"] < 0.7
    assert found["bradley_terry"]["loss"] > math.log(2) - 1e-6


def test_margins_are_taken_off_the_difference(make: MakeModel) -> None:
    model = make()
    groups = [group(4, [5, 6], seed=3, vocab_size=VOCABULARY)]
    batch = pe.Preferences(groups, [pe.Comparison(0, 0, 1, margin=1.5)])
    w, l = model.rewards(groups)[0]  # noqa: E741
    expected = math.log1p(math.exp(-(float(w - l) - 1.5)))
    loss = model.forward_backward(batch, use_margins=True)["loss"]
    assert loss == pytest.approx(expected, rel=1e-6)
    metrics = model.forward_backward(pe.Preferences(groups, [pe.Comparison(0, 0, 1)]))
    assert metrics["loss"] == pytest.approx(math.log1p(math.exp(-float(w - l))), rel=1e-6)
    assert metrics["rewards/margins"] == pytest.approx(float(w - l), abs=1e-6)


def test_steps_that_are_not_finite_change_nothing(make: MakeModel) -> None:
    model = make()
    batch, _ = batch_of("bradley_terry")
    with pytest.raises(RequestError, match=r"^\[step\] there are no gradients"):
        model.step()
    model._head.weight.data[0, 0] = float("nan")
    before = {n: p.clone() for n, p in model._network.decoder.named_parameters()}
    assert [model.update(batch)["skipped"] for _ in range(4)] == [1] * 4
    with pytest.raises(NonFiniteError, match="were not finite 5 times in a row"):
        model.update(batch)
    assert same_bits(dict(model._network.decoder.named_parameters()), before)


def test_last_rows_row_by_row() -> None:
    """Prompt 10 11, responses (20 21), () and (30): rows 10 11 | 20 21 | 30, read at 3, 1 and 4."""
    trees = [Tree([10, 11], [[20, 21], [], [30]]), Tree([40], [[50]])]
    batch = pack(trees, torch.device("cpu"), last_rows=True)
    assert batch.token_ids.tolist() == [10, 11, 20, 21, 30, 40, 50]
    assert batch.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert batch.segments == [(2, [2, 0, 1]), (1, [1])]
    assert batch.source_rows.tolist() == [3, 1, 4, 6]
    assert batch.cu_seqlens.tolist() == [0, 1, 2, 3, 4]
    assert batch.token_groups().tolist() == [0, 3, 4]
    assert batch.tree_rows == [0, 5, 7]
    assert len(batch.targets) == 0


def test_an_update_moves_the_embeddings_that_were_read_and_the_head(make: MakeModel) -> None:
    """A decoder without a head over the vocabulary owns its table: no other row has a gradient."""
    model = make(learning_rate=1e-3)
    groups = [pe.Group([3, 4], [pe.Response([5, 6]), pe.Response([7])])]
    before = {n: p.clone() for n, p in model._network.parameters.items()}
    model.update(pe.Preferences(groups, [pe.Comparison(0, 0, 1)]))
    moved = (model._network.parameters["embed.weight"] != before["embed.weight"]).any(1)
    assert moved.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    assert all(not torch.equal(p, before[n]) for n, p in model._network.parameters.items())


def test_what_is_refused_leaves_gathered_gradients(make: MakeModel) -> None:
    model = make()
    batch, _ = batch_of("bradley_terry")
    gathered = gradient(model, "bradley_terry")
    with pytest.raises(ConfigError):
        model.forward_backward(batch, center=-1.0)
    assert same_bits(dict(model.named_gradients()), gathered)


def test_a_ranking_reads_what_is_likelier(make: MakeModel) -> None:
    groups = [group(4, [5, 6], seed=3, vocab_size=VOCABULARY)]
    losses = [
        make().forward_backward(pe.Preferences(groups, [comparison]), "plackett_luce")["loss"]
        for comparison in (pe.Comparison(0, 0, 1, probability=0.2), pe.Comparison(0, 1, 0))
    ]
    assert losses[0] == losses[1] != math.log(2)
