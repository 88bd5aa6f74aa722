"""Token shards written earlier by `recyclegpt tokenize`, as a corpus."""

from __future__ import annotations

from pathlib import Path

from recyclegpt.data.shards import TokenShards, open_shards, read_meta
from recyclegpt.data.skipped import Skipped
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.errors import ConfigError


class Tokenized:
    """A folder of token shards. It brings its own tokenizer.

    Args:
        path: the folder; `~` is expanded.
        verify: compare every shard with its checksum when it is opened. A shard that fails is left out and counted.

    Raises:
        ConfigError: if the folder does not hold token shards.
    """

    kind = "tokenized"

    def __init__(self, path: str, verify: bool = True) -> None:
        self.folder = Path(path).expanduser()
        self.verify = verify
        read_meta(self.folder)

    def open(self, max_skipped: int) -> tuple[TextTokenizer, TokenShards, TokenShards, str]:
        """Tokenizer, training tokens, validation tokens and a fingerprint of the tokens that are used.

        Raises:
            ConfigError: if shards are missing or damaged beyond `max_skipped`, or the tokenizer is another one.
        """
        meta = read_meta(self.folder)
        tokenizer = TextTokenizer.from_file(self.folder, meta["eos_token"])
        if tokenizer.fingerprint != meta["tokenizer"]:
            raise ConfigError(
                f"data.path: {self.folder / 'tokenizer.json'} is not the tokenizer that wrote the shards; "
                "put the original back or run `recyclegpt tokenize` again"
            )
        skipped = Skipped(max_skipped, str(self.folder))
        train, train_digest = open_shards(self.folder, "train", skipped, self.verify)
        val, val_digest = open_shards(self.folder, "val", skipped, self.verify)
        skipped.report()
        return tokenizer, train, val, f"{train_digest[:32]}{val_digest[:32]}"
