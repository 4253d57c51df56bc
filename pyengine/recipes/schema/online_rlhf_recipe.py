"""A recipe of the loop `online_rlhf`: the preference model is refitted as the policy moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyengine.recipes.schema.on_policy_rl_recipe import OnPolicyRLRecipe


@dataclass(frozen=True, kw_only=True)
class OnlineRLHFRecipe(OnPolicyRLRecipe):
    """Each round labels pairs of samples, refits a preference model, and follows its rewards.

    source  a preference model that takes labels in, such as refitted_head
    eval    with a source of its own, see loops.OnlineRLHF
    others  see OnPolicyRLRecipe
    """

    name: ClassVar[str] = "online_rlhf"
