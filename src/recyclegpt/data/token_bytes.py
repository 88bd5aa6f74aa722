"""How many bytes of text a token stands for: what bits per byte are counted in."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token that stands for one byte of a character without a token of its own (`<0xE4>`)."""


def byte_symbols() -> dict[int, str]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + len(symbols) - len(printable))
    return symbols


def count_bytes(content: dict[str, Any], vocab_size: int) -> NDArray[np.int64]:
    """Bytes of UTF-8 text of each id of a `tokenizer.json`, `(V,)`; special tokens and unused ids stand for none."""
    byte_level = '"type": "ByteLevel"' in json.dumps(content.get("decoder"))
    vocab = content["model"]["vocab"]
    pieces = vocab.items() if isinstance(vocab, dict) else ((piece[0], i) for i, piece in enumerate(vocab))
    num_bytes = np.zeros(vocab_size, np.int64)
    symbols = set(byte_symbols().values())
    for piece, token_id in pieces:
        if byte_level and symbols.issuperset(piece):
            num_bytes[token_id] = len(piece)
        elif BYTE_PIECE.fullmatch(piece):
            num_bytes[token_id] = 1
        else:
            num_bytes[token_id] = len(piece.replace("▁", " ").encode())
    unknown = content["model"].get("unk_token")
    if isinstance(vocab, dict) and unknown in vocab:
        num_bytes[vocab[unknown]] = 0
    for added in content["added_tokens"]:
        num_bytes[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return num_bytes
