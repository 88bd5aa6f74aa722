"""The one exception for a user's mistake, shared by every room."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A setting, file or combination that cannot work.

    Holds every problem found, each a sentence naming the key or file and the remedy. The command line prints them
    and exits 2.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))
