"""Self-BLEU: how much the responses to one prompt repeat each other, by n-grams."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

Words = Sequence[Hashable]


def ngram_counts(words: Words, n: int) -> Counter[tuple[Hashable, ...]]:
    """Each run of n words, with how often it is there."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(words: Words, references: Sequence[Words], max_order: int = 4) -> float:
    """BLEU of one text against several, between 0 and 1; 0 for an empty text.

    exp(mean over orders of log p_n) times the brevity penalty exp(1 - r / c) of a text of c words
    shorter than r, the closest reference. p_n is the share of n-grams that a reference has as
    often; above order 1 a match and an n-gram are added to it, so that short texts are not 0.
    Source: Papineni et al., ACL 2002; the addition is that of Lin and Och, COLING 2004.
    """
    if not words or not references:
        return 0.0
    logs = []
    for n in range(1, max_order + 1):
        mine = ngram_counts(words, n)
        most: Counter[tuple[Hashable, ...]] = Counter()
        for reference in references:
            most |= ngram_counts(reference, n)
        extra = n > 1
        matched = sum((mine & most).values()) + extra
        if matched == 0:
            return 0.0
        logs.append(math.log(matched / (sum(mine.values()) + extra)))
    closest = min((len(r) for r in references), key=lambda r: (abs(r - len(words)), r))
    brevity = min(0.0, 1 - closest / len(words))
    return math.exp(brevity + math.fsum(logs) / max_order)


def self_bleu(texts: Sequence[Words], max_order: int = 4) -> float | None:
    """Mean BLEU of each text against all others; None for fewer than two.

    Source: Zhu et al., arXiv:1802.01886, section 3.
    """
    if len(texts) < 2:
        return None
    scores = [bleu(text, [*texts[:i], *texts[i + 1 :]], max_order) for i, text in enumerate(texts)]
    return math.fsum(scores) / len(scores)
