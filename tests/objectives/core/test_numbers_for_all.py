"""An input that is one number for all examples is the same as a tensor full of it."""

from __future__ import annotations

import pytest
import torch
from objectives.cases import CASES, Case

WITH_INPUTS = [c for c in CASES if any(not k.endswith("_logps") for k in c.inputs)]


@pytest.mark.parametrize("case", WITH_INPUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_is_a_full_tensor(case: Case, dtype: torch.dtype) -> None:
    """1, which every input may be; but 2 for weights, whose default is 1."""
    given = {k: v.to(dtype) for k, v in case.draw(5).items()}
    names = [k for k in case.inputs if not k.endswith("logps")]
    numbers = {k: 2.0 if "weight" in k else 1.0 for k in names}
    tensors = {k: torch.full((5,), v, dtype=dtype) for k, v in numbers.items()}
    one, other = case.loss(given | numbers), case.loss(given | tensors)  # type: ignore[operator]
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
