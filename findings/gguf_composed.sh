#!/usr/bin/env bash
# A Qwen2 tokenizer that transformers reads from a GGUF file does not compose characters.
#
# Packages   transformers 5.23.0, tokenizers 0.23.3, gguf 0.19.0, torch 2.13.0 (the reader imports it)
# Behaviour  AutoTokenizer.from_pretrained(folder, gguf_file=...) gives a Qwen2Tokenizer without the
#            NFC step that a Qwen2Tokenizer made from the same vocabulary and merges has.
# Seen       Qwen2Tokenizer from GGUF: normalizer None
#            Qwen2Tokenizer from vocabulary: normalizer NFC()
#            'caf\xe9' GGUF [67, 65, 70, 257] vocabulary [67, 65, 70, 257]
#            'cafe\u0301' GGUF [67, 65, 70, 69, 137, 224] vocabulary [67, 65, 70, 257]
# Expected   Equal ids. Both objects are of one class, the file names the family twice
#            (architecture and tokenizer.ggml.pre are qwen2), and the reader takes the family's word
#            pattern from that name: why not its normalizer? Decomposed text (file names of macOS,
#            some Vietnamese and Korean input) becomes tokens that the model hardly saw in training.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 torch==2.13.0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import gguf
from transformers import AutoTokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

letters = bytes_to_unicode()  # byte -> the letter that stands for it in a byte-level vocabulary
left, right = (letters[byte] for byte in "\u00e9".encode())
tokens = ["<|endoftext|>", *letters.values(), left + right]

writer = gguf.GGUFWriter(f"{sys.argv[1]}/tiny.gguf", "qwen2")
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("qwen2")
writer.add_token_list(tokens)
writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
writer.add_token_merges([f"{left} {right}"])
writer.add_eos_token_id(0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

read = AutoTokenizer.from_pretrained(sys.argv[1], gguf_file="tiny.gguf")
made = Qwen2Tokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[(left, right)])
assert type(read) is type(made) is Qwen2Tokenizer
for name, tokenizer in (("GGUF", read), ("vocabulary", made)):
    normalizer = tokenizer.backend_tokenizer.normalizer
    print(f"{type(tokenizer).__name__} from {name}: normalizer {normalizer}")

ids = {}
for text in ("caf\u00e9", "cafe\u0301"):
    ids[text] = read(text)["input_ids"], made(text)["input_ids"]
    print(f"{text!a} GGUF {ids[text][0]} vocabulary {ids[text][1]}")
assert ids["caf\u00e9"] == ([67, 65, 70, 257], [67, 65, 70, 257])
assert ids["cafe\u0301"] == ([67, 65, 70, 69, 137, 224], [67, 65, 70, 257])
PY
