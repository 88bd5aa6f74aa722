"""`AutoTokenizer` reads what was written, and gives the same ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from recyclegpt.data import TextTokenizer
from recyclegpt.export.formats import write_hf_tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = ["def alpha(beta):\n    return  1", " é ü 日本", "a"]


def with_start(tmp_path: Path) -> TextTokenizer:
    """A tokenizer whose template puts `<s>` before every text."""
    TextTokenizer.bytes("</s>").save(tmp_path / "plain.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "plain.json"))
    tokenizer.add_special_tokens(["<s>"])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("kind", ["bytes", "trained", "with a start token"])
def test_the_same_ids(kind: str, tmp_path: Path) -> None:
    if kind == "with a start token":
        ours = with_start(tmp_path)
        assert ours.start_ids
    else:
        ours = TextTokenizer.bytes() if kind == "bytes" else TextTokenizer.train(iter(TEXTS * 9), 290)
    folder = tmp_path / "out"
    folder.mkdir()
    write_hf_tokenizer(ours, folder, context_length=64)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert theirs(text).input_ids == [*ours.start_ids, *ours.encode(text)]
        assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_id, ours.eos_id)
    assert theirs.bos_token_id == (ours.start_ids[0] if ours.start_ids else None)
    assert theirs.model_max_length == 64
