#!/usr/bin/env bash
# transformers' Qwen2Tokenizer ignores rstrip of its end token; GPT2Tokenizer keeps it.
#
# Packages   transformers 5.23.0, tokenizers 0.23.3
# Behaviour  eos_token=AddedToken(..., rstrip=True) is added by Qwen2Tokenizer a second time, with
#            default flags that replace its own. A tokenizer.json that says rstrip is overruled too:
#            the folder reads differently by AutoTokenizer and by tokenizers' own Tokenizer.
# Seen       GPT2Tokenizer   [64, 256, 65]
#            Qwen2Tokenizer  [64, 256, 198, 65]
#            tokenizer.json with rstrip: tokenizers [64, 256, 65], AutoTokenizer [64, 256, 198, 65]
# Expected   [64, 256, 65] from all: with rstrip the newline after <|end|> belongs to the token.
#            Both classes are byte-level BPE with the same arguments, and an AddedToken is passed
#            instead of a string just for its flags.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - "$folder/saved" <<'PY'
import json
import pathlib
import sys

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, GPT2Tokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

text = "a<|end|>\nb"
letters = [*bytes_to_unicode().values(), "<|end|>"]
ids = {}
for kind in (GPT2Tokenizer, Qwen2Tokenizer):
    tokenizer = kind(
        vocab={letter: index for index, letter in enumerate(letters)}, merges=[],
        eos_token=AddedToken("<|end|>", rstrip=True, normalized=False, special=True),
    )
    ids[kind] = tokenizer(text)["input_ids"]
    print(f"{kind.__name__:15} {ids[kind]}")

# The Qwen2 folder again, its tokenizer.json saying what was asked for.
tokenizer.save_pretrained(sys.argv[1])
path = pathlib.Path(sys.argv[1], "tokenizer.json")
content = json.loads(path.read_text())
for token in content["added_tokens"]:
    token["rstrip"] = token["content"] == "<|end|>"
path.write_text(json.dumps(content))
plain = Tokenizer.from_file(str(path)).encode(text).ids
auto = AutoTokenizer.from_pretrained(sys.argv[1])(text)["input_ids"]
print(f"tokenizer.json with rstrip: tokenizers {plain}, AutoTokenizer {auto}")

assert ids[GPT2Tokenizer] == plain == [64, 256, 65]
assert ids[Qwen2Tokenizer] == auto == [64, 256, 198, 65]
PY
