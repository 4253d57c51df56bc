#!/usr/bin/env bash
# A peft adapter with an alpha_pattern computes something else after it is saved and loaded.
#
# Packages   peft 0.21.2, torch 2.13.0, transformers 5.23.0
# Behaviour  Where two keys of alpha_pattern match a module, the first in the dict decides. But
#            save_pretrained writes adapter_config.json with sorted keys, so the loaded adapter
#            reads them in another order: another scale, without a warning or an error.
# Seen       made    q_proj x 1.0, v_proj x 8.0
#            loaded  q_proj x 8.0, v_proj x 8.0
#            equal tensors True, equal outputs False
# Expected   Equal outputs: saving and loading an adapter keeps what it computes. "This projection
#            gets 4, every other one 32" is a natural pattern, a dict keeps its order in Python and
#            in JSON, and the adapter as trained reads it as written.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q peft==0.21.2 torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/adapter" <<'PY'
import copy
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.q_proj(x) + self.v_proj(x)


def scales(model):
    inner = model.base_model.model
    return {name: getattr(inner, name).scaling["default"] for name in ("q_proj", "v_proj")}


torch.manual_seed(0)
base = Attention()
config = LoraConfig(
    target_modules=["q_proj", "v_proj"], r=4, lora_alpha=4, init_lora_weights=False,
    alpha_pattern={"q_proj": 4, ".*_proj": 32},
)
made = get_peft_model(copy.deepcopy(base), config).eval()
made.save_pretrained(sys.argv[1])
loaded = PeftModel.from_pretrained(copy.deepcopy(base), sys.argv[1]).eval()

for name, model in (("made   ", made), ("loaded ", loaded)):
    print(name, ", ".join(f"{module} x {scale}" for module, scale in scales(model).items()))
pairs = zip(made.state_dict().values(), loaded.state_dict().values(), strict=True)
same_tensors = all(torch.equal(one, other) for one, other in pairs)
same_outputs = torch.allclose(made(torch.ones(1, 4)), loaded(torch.ones(1, 4)))
print(f"equal tensors {same_tensors}, equal outputs {same_outputs}")
assert scales(made) == {"q_proj": 1.0, "v_proj": 8.0}
assert scales(loaded) == {"q_proj": 8.0, "v_proj": 8.0}
assert same_tensors and not same_outputs
PY
