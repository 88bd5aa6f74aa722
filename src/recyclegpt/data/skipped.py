"""Counts what could not be read, names it once, and stops the run past a limit: text is never lost in silence."""

from __future__ import annotations

import logging

from recyclegpt.errors import ConfigError

_log = logging.getLogger(__name__)
_NUM_SHOWN = 20


class Skipped:
    """The documents left out of one reading of a corpus.

    Args:
        limit: most documents that may be left out.
        corpus: how messages call the corpus.
    """

    def __init__(self, limit: int, corpus: str = "corpus") -> None:
        self.limit = limit
        self.corpus = corpus
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self.problems)

    def add(self, problem: str) -> None:
        """Count one document; `problem` says where it stands and why it was left out.

        Raises:
            ConfigError: naming every document left out, when they are more than `limit`.
        """
        self.problems.append(problem)
        if len(self.problems) > self.limit:
            raise ConfigError(
                [
                    f"{self.corpus}: more than data.max_skipped={self.limit} documents cannot be read; "
                    "repair them or raise data.max_skipped",
                    *self.problems,
                ]
            )

    def report(self) -> None:
        """Name everything left out in one warning; says nothing when nothing was."""
        if not self.problems:
            return
        shown = "".join(f"\n  {problem}" for problem in self.problems[:_NUM_SHOWN])
        more = len(self.problems) - _NUM_SHOWN
        rest = f"\n  and {more} more" if more > 0 else ""
        _log.warning(
            "%s: left out %d documents that could not be read:%s%s", self.corpus, len(self.problems), shown, rest
        )
