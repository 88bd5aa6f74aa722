"""Training of a byte-level BPE: bounded, with a progress bar, and open to Ctrl-C."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_LONGEST_RUN = 1_000
"""Characters; the longest in the default corpus are shorter, and so is every useful token."""
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_RUN + 1},}}|\s{{{_LONGEST_RUN + 1},}}")


def train_bpe(texts: Iterable[str], vocab_size: int, end_token: str) -> Tokenizer:
    """A byte-level BPE learned from `texts`; smaller than `vocab_size` where text is scarce."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_token],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),  # it prints blank lines all the same
    )
    _interruptibly(lambda: tokenizer.train_from_iterator(_bounded(texts), trainer))
    return tokenizer


def _bounded(texts: Iterable[str]) -> Iterator[str]:
    """Texts cut inside longer runs of letters or of blanks, in whose length training is quadratic."""
    for text in texts:
        start = 0
        for run in _LONG_RUN.finditer(text):
            for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
                yield text[start:cut]
                start = cut
        yield text[start:]


def _interruptibly(function: Callable[[], object]) -> None:
    """Call a function that runs outside of Python for long, and let Ctrl-C and other signals be handled meanwhile."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if errors:
        raise errors[0]
