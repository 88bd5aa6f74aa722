"""A tokenizer as `transformers`' `AutoTokenizer` reads it, in versions 4 and 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recyclegpt.data.tokenizer import TextTokenizer


def start_id(tokenizer: TextTokenizer) -> int | None:
    """The one token that begins a text; None where there is none, or more than `transformers` has a name for."""
    return tokenizer.start_ids[0] if len(tokenizer.start_ids) == 1 else None


def write_hf_tokenizer(tokenizer: TextTokenizer, folder: Path, context_length: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.

    The end token also pads: a token of its own would need a row in the embedding that no training has seen.

    Raises:
        OSError: a file cannot be written.
    """
    tokenizer.save(folder / "tokenizer.json")
    special = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.eos_token}
    if start_id(tokenizer) is not None:
        special["bos_token"] = tokenizer.decode(tokenizer.start_ids)
    if tokenizer.chat is not None:
        special |= tokenizer.chat.variables
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **({} if tokenizer.chat is None else {"chat_template": tokenizer.chat.source}),
    }
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
