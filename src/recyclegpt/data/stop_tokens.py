"""Which tokens end a text, as a model's folder declares it: `eos_token_id` of its configs.

A chat model declares several, and the first of them need not be the one that its tokenizer's vocabulary suggests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

FILES = ("generation_config.json", "config.json")


def declared_ends(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """The tokens by name, in the order of the file; none where no file declares any that the vocabulary holds."""
    for name in FILES:
        try:
            values = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # a model that needs the file says so itself
            continue
        given = values.get("eos_token_id") if isinstance(values, dict) else None
        ids = given if isinstance(given, list) else [given]
        known = [one for one in ids if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 1 << 32]
        found = [token for one in known if (token := tokenizer.id_to_token(one)) is not None]
        if found:
            return list(dict.fromkeys(found))
    return []


def declare_ends(folder: Path, ids: Sequence[int]) -> None:
    """Write them down beside a `tokenizer.json`, so that `declared_ends` finds them again."""
    (folder / FILES[0]).write_text(json.dumps({"eos_token_id": list(ids)}) + "\n", encoding="utf-8")
