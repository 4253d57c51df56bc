"""Real text to judge: sentences that SmolLM2 itself writes, with what VADER thinks of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import pyengine as pe

TOPICS = (
    "the weather", "a dog", "my neighbour", "the train ride", "a birthday", "the new school",
    "dinner", "a film", "the garden", "an old friend", "the office", "a long walk", "the hospital",
    "a letter", "the sea", "a concert", "the kitchen", "a job interview", "the football match",
    "my brother", "the market", "a holiday", "the winter", "a phone call", "the library", "a cat",
    "the exam", "my grandmother", "the city", "a surprise", "the bus driver", "a book",
    "the hotel", "a bicycle", "the museum", "my doctor", "the airport", "a wedding", "the news",
    "a song",
)  # fmt: skip
# (positive, negative) beginnings; the held-out ones share no word of mood with those of training.
TRAINED_ON = (
    ("I love", "I hate"),
    ("I am so happy about", "I am so sad about"),
    ("It is wonderful to think of", "It is terrible to think of"),
)
HELD_OUT = (
    ("The best thing about", "The worst thing about"),
    ("People really enjoyed", "People got angry about"),
)
# Each kind is preferred to the next, and the last to the first.
KINDS = (
    ("The soup", "My favourite cake", "For breakfast we had", "The chef", "Fresh bread",
     "The cheese", "A bowl of rice", "Her apple pie", "The salad", "Dinner tonight",
     "The roast chicken", "Ripe tomatoes"),
    ("The storm", "Heavy rain", "The cold wind", "This morning the fog", "Deep snow",
     "The thunder", "A warm breeze", "The sunshine", "Dark clouds", "The frost",
     "The heat wave", "A light drizzle"),
    ("The goalkeeper", "Our team", "The tennis player", "After the race the runner", "The coach",
     "The referee", "In the second half the striker", "The swimmer", "The boxing match",
     "The marathon", "The basketball player", "The cycling team"),
)  # fmt: skip
_CLEAR = 0.4  # of VADER's compound score in [-1, 1]


def sentences(
    engine: pe.Engine, beginnings: Sequence[str], ids: Sequence[int], seeds: Sequence[int] = (0,)
) -> list[list[str]]:
    """How the model goes on with each beginning, up to the end of the sentence; for each seed.

    ids  of the draws of each beginning
    """
    params = pe.SamplingParams(max_tokens=14, temperature=0.8, stop=["\n", "."])
    each = [dataclasses.replace(params, seed=seed) for seed in seeds for _ in beginnings]
    groups = engine.generate([*beginnings] * len(seeds), each, [*ids] * len(seeds))
    texts = [
        f"{start}{group.responses[0].text.rstrip('. ')}."
        for start, group in zip([*beginnings] * len(seeds), groups, strict=True)
    ]
    return [texts[k : k + len(beginnings)] for k in range(0, len(texts), len(beginnings))]


def sentiment_pairs(
    engine: pe.Engine, topics: Sequence[str], beginnings: Sequence[tuple[str, str]]
) -> pe.Preferences:
    """A positive sentence against a negative one on each topic, where VADER calls both clear."""
    judge = SentimentIntensityAnalyzer().polarity_scores
    of_topic = [topic for topic in topics for _ in beginnings]
    good, bad = (
        sentences(
            engine,
            [f"{pair[side]} {topic}" for topic in topics for pair in beginnings],
            range(len(of_topic)),
        )[0]
        for side in (0, 1)
    )
    rows = [
        {"prompt": f"Write a sentence about {topic}.\n", "chosen": chosen, "rejected": rejected}
        for topic, chosen, rejected in zip(of_topic, good, bad, strict=True)
        if judge(chosen)["compound"] > _CLEAR and judge(rejected)["compound"] < -_CLEAR
    ]
    return pe.Preferences.from_rows(rows, engine)


def cyclic_groups(engine: pe.Engine, places: range, seeds: int) -> pe.Preferences:
    """Groups of one sentence of each kind; food beats weather, weather sport, and sport food."""
    prompt = engine.tokenizer.encode_prompt("Which sentence do you like?\n")
    groups = []
    beginnings = [kind[i] for kind in KINDS for i in places]
    ids = [k for _ in KINDS for k in range(len(places))]
    for written in sentences(engine, beginnings, ids, range(seeds)):
        kinds = [written[k : k + len(places)] for k in range(0, len(written), len(places))]
        for texts in zip(*kinds, strict=True):
            ids = [engine.tokenizer.encode(text) for text in texts]
            groups.append(pe.Group(prompt, [pe.Response(each) for each in ids]))
    comparisons = [pe.Comparison(g, i, (i + 1) % 3) for g in range(len(groups)) for i in range(3)]
    return pe.Preferences(groups, comparisons)


def train(
    model: pe.RewardModel, data: pe.Preferences, loss: str, steps: int, size: int, **options: float
) -> list[float]:
    """The loss of each step; comparisons are taken in their order, round and round."""
    losses = []
    for step in range(steps):
        picked = [(step * size + i) % len(data.comparisons) for i in range(size)]
        batch = pe.Preferences(data.groups, [data.comparisons[i] for i in picked])
        losses.append(model.update(batch, loss, **options)["loss"])
    return losses


def accuracy(model: pe.RewardModel, data: pe.Preferences) -> float:
    """Share of the comparisons whose winner the model prefers."""
    rewards = model.rewards(data.groups)
    right = 0
    for c in data:
        winner, loser = rewards[c.group][c.winner], rewards[c.group][c.loser]
        if model.outputs == 1:
            right += bool(winner > loser)
        else:
            right += bool(pe.objectives.gpm_score(winner[None], loser[None]) > 0)
    return right / len(data.comparisons)


@dataclass(frozen=True)
class Result:
    """Accuracy on what was learned and on what was held out, before and after; losses by step."""

    pairs: tuple[int, int]
    before: float
    trained: float
    held_out: float
    losses: list[float]


def sentiment(path: str | Path, adapters: bool = True) -> Result:
    """Bradley-Terry: held out are other topics with other beginnings."""
    engine = pe.Engine.from_pretrained(path, dtype="bfloat16", reference="none")
    data = sentiment_pairs(engine, TOPICS[:20], TRAINED_ON)
    held_out = sentiment_pairs(engine, TOPICS[20:], HELD_OUT)
    del engine
    rate, lora = (1e-3, pe.LoraConfig(r=8)) if adapters else (1e-4, None)
    model = pe.RewardModel.from_pretrained(path, dtype="bfloat16", learning_rate=rate, lora=lora)
    return _result(model, data, held_out, "bradley_terry", 6, 12)


def cycles(path: str | Path, bradley_terry_steps: int = 12) -> dict[str, Result]:
    """GPM and Bradley-Terry on a cycle of three kinds; held out are other beginnings."""
    engine = pe.Engine.from_pretrained(path, dtype="bfloat16", reference="none")
    data, held_out = cyclic_groups(engine, range(9), 4), cyclic_groups(engine, range(9, 12), 4)
    del engine
    found = {}
    for loss, outputs, steps, options in (
        ("gpm", 2, 18, {"tau": 1.0}), ("bradley_terry", 1, bradley_terry_steps, {})
    ):  # fmt: skip
        model = pe.RewardModel.from_pretrained(
            path, outputs, dtype="bfloat16", learning_rate=2e-3, lora=pe.LoraConfig(r=8),
            schedule="linear", total_steps=25, warmup_steps=4,
        )  # fmt: skip
        found[loss] = _result(model, data, held_out, loss, steps, 18, **options)
    return found


def _result(
    model: pe.RewardModel,
    data: pe.Preferences,
    held_out: pe.Preferences,
    loss: str,
    steps: int,
    size: int,
    **options: float,
) -> Result:
    before = accuracy(model, held_out)
    losses = train(model, data, loss, steps, size, **options)
    pairs = len(data.comparisons), len(held_out.comparisons)
    return Result(pairs, before, accuracy(model, data), accuracy(model, held_out), losses)
