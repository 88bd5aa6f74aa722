"""Counts what cannot be read, names it once, and stops the run past a limit: text is never lost silently.

Empty documents are counted and named too, but never stop a run: they lose nothing, and some public datasets hold one
for every blank line.
"""

from __future__ import annotations

import logging

from recyclegpt.errors import ConfigError

_log = logging.getLogger(__name__)
_NUM_SHOWN = 20


class Skipped:
    """The documents left out of one reading of a corpus.

    Args:
        limit: unreadable documents allowed.
        corpus: its name in messages.
    """

    def __init__(self, limit: int, corpus: str = "corpus") -> None:
        self.limit = limit
        self.corpus = corpus
        self.problems: list[str] = []
        """Every unreadable document: where it is and why it cannot be read."""
        self.empty: list[str] = []
        """The first documents without text."""
        self.num_empty = 0

    def add(self, problem: str) -> None:
        """Count one unreadable document.

        Raises:
            ConfigError: naming every document left out, when there are more than `limit`.
        """
        self.problems.append(problem)
        if len(self.problems) > self.limit:
            limit = f"more than data.max_skipped={self.limit} documents cannot be read"
            raise ConfigError([f"{self.corpus}: {limit}; repair them or raise data.max_skipped", *self.problems])

    def add_empty(self, where: str) -> None:
        """Count one document without text."""
        self.num_empty += 1
        if len(self.empty) < _NUM_SHOWN:
            self.empty.append(where)

    def report(self) -> None:
        """Warn of what was left out, once for each kind."""
        kinds = [(self.empty, self.num_empty, "are empty"), (self.problems, len(self.problems), "cannot be read")]
        for names, total, why in kinds:
            if total:
                shown = "".join(f"\n  {name}" for name in names[:_NUM_SHOWN])
                more = f"\n  and {total - _NUM_SHOWN} more" if total > _NUM_SHOWN else ""
                _log.warning("%s: left out documents that %s: %d%s%s", self.corpus, why, total, shown, more)
