"""What samplers do with groups: several of a prompt become one, responses say their origin."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pyengine.preferences.groups import Group, Response


def with_origin(groups: Sequence[Group], origin: str) -> list[Group]:
    """The groups themselves; each response is from the model `origin`."""
    for group in groups:
        for response in group.responses:
            response.origin = origin
    return list(groups)


def joined(*parts: Sequence[Group]) -> list[Group]:
    """A group for each prompt, of the responses that the parts have of it, one part after another.

    parts  groups of the same prompts in the same order; prompt and columns are the first part's
    """
    return [
        dataclasses.replace(several[0], responses=[r for group in several for r in group.responses])
        for several in zip(*parts, strict=True)
    ]


def chosen(group: Group, indices: Sequence[int]) -> Group:
    """The group with these of its responses, in this order."""
    return dataclasses.replace(group, responses=[group.responses[k] for k in indices])


def reprompted(response: Response, origin: str) -> Response:
    """The response as one to another prompt than it was sampled with.

    What was measured under that other prompt is left out: `logprobs` would be read as the model's
    for the prompt that the group shows. `sampling_logprobs` stay, of the distribution drawn from.
    """
    return dataclasses.replace(
        response, logprobs=None, entropy=None, top_logprobs=None, model_logprobs=None, origin=origin
    )
