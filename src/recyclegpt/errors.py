"""What ends a command with a message instead of a traceback, shared by every room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class ConfigError(ValueError):
    """A setting, file or combination that cannot work.

    Holds every problem found, each a sentence naming the key or file and the remedy. The command line prints them
    and exits 2.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        """A data worker hands it to the process that trains."""
        return type(self), (self.problems,)


class RunError(RuntimeError):
    """A run that had begun cannot continue. The message says what happened and what to do; the command exits 1."""


class Stopped(SystemExit):
    """Someone asked a run to stop, and it has saved and stopped. Ends a sweep too.

    Args:
        message: how far the run has come and how to resume it.
        code: 128 + the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Problems:
    """Collects the problems of several checks, so that a user sees all of them at once."""

    def __init__(self, found: Iterable[str] = ()) -> None:
        self.found = list(found)

    @contextmanager
    def under(self, prefix: str = "") -> Iterator[None]:
        """Note what a check raises, each problem with this prefix, and continue after the block."""
        try:
            yield
        except ConfigError as error:
            self.found += [prefix + problem for problem in error.problems]

    def raise_any(self) -> None:
        """Raise what was found.

        Raises:
            ConfigError: naming each problem once.
        """
        if self.found:
            raise ConfigError(list(dict.fromkeys(self.found)))
