#!/usr/bin/env bash
# transformers' TextStreamer takes a space away from every indented line of a Llama tokenizer.
#
# Packages   transformers 5.23.0, tokenizers 0.23.3, numpy 2.4.1
# Behaviour  After a newline the streamer forgets the tokens so far and decodes the next ones as if
#            a text began there. The decoder of LlamaTokenizer removes one space at the start of a
#            text, so the line loses its first space: the pieces do not join to decode().
# Seen       decode    'if a:\n    b\n c'
#            streamed  'if a:\n   b\nc'
# Expected   Equal texts: a streamer shows the answer of decode() earlier, not another one. The
#            removed space belongs to the start of the answer; that of a later line is content, here
#            the indent of code. The end of a line looks like the safest place to cut a stream.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.1
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PY'
import numpy as np
from transformers import LlamaTokenizer, TextStreamer

space = "\u2581"  # how SentencePiece writes a space
words = [f"{space}if", f"{space}a", ":", "<0x0A>", space * 3, f"{space}b", f"{space}c"]
vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *words])}
tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[])


class Collected(TextStreamer):
    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.pieces = []

    def on_finalized_text(self, text, stream_end=False):
        self.pieces.append(text)


answer = [words[i] for i in (0, 1, 2, 3, 4, 5, 3, 6)]
ids = [vocabulary[token] for token in answer]
streamer = Collected(tokenizer)
for token in ids:
    streamer.put(np.array([token]))
streamer.end()

decoded, streamed = tokenizer.decode(ids), "".join(streamer.pieces)
print(f"decode    {decoded!a}\nstreamed  {streamed!a}")
assert decoded == "if a:\n    b\n c"
assert streamed == "if a:\n   b\nc"
PY
