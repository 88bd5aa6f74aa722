"""Strings that end a text: found in tokens while decoding, and in text while printing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence


class StopStrings:
    """Finds the first of some strings in what a decoder writes; the prompt is not searched. False without strings."""

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self.strings, self.decode = list(strings), decode
        # A token of a byte-level tokenizer holds at least one byte; a special token holds none.
        self.window = max((len(string.encode()) for string in strings), default=0) + 8

    def __bool__(self) -> bool:
        return bool(self.strings)

    def place(self, text: str) -> int | None:
        """Where the first stop string in the text begins; None if it holds none."""
        return min((place for place in map(text.find, self.strings) if place >= 0), default=None)

    def cut(self, text: str) -> str:
        """The text up to its first stop string."""
        return text[: self.place(text)]

    def num_safe(self, text: str) -> int:
        """Characters of a text without a stop string that stay outside one, whatever follows."""
        for begin in range(max(0, len(text) - self.window), len(text)):
            if any(string.startswith(text[begin:]) for string in self.strings):
                return begin
        return len(text)

    def first_stop(self, tokens: list[int], num_new: int) -> int | None:
        """Number of tokens up to the one that completes a stop string; None if none of the last `num_new` does."""
        begin = max(0, len(tokens) - num_new - self.window)
        if self.place(self.decode(tokens[begin:])) is None:
            return None
        ends = range(len(tokens) - num_new + 1, len(tokens) + 1)
        return next(end for end in ends if self.place(self.decode(tokens[begin:end])) is not None)


class TextStreamer:
    """Text for a reader while it is written: whole characters only, and nothing of a stop string.

    A piece that may be the beginning of a stop string is held back until it is clear that it is not.
    """

    def __init__(self, stops: StopStrings, step: Callable[[int], str], finish: Callable[[], str]) -> None:
        """`step` gives the text that a token completes, `finish` what is left at the end."""
        self.stops, self.step, self.finish = stops, step, finish
        self.held: list[tuple[str, bool]] = []
        """Characters not shown yet, each with its mark."""
        self.ended = False

    def add(self, token: int, mark: bool) -> list[tuple[str, bool]]:
        """Pieces that can be shown now, each with its mark."""
        return self._release(self.step(token), mark)

    def end(self) -> list[tuple[str, bool]]:
        """What was held back, when no more tokens come."""
        pieces = self._release(self.finish(), False)
        return pieces + _joined(self.held)

    def _release(self, piece: str, mark: bool) -> list[tuple[str, bool]]:
        if self.ended:
            return []
        self.held += [(character, mark) for character in piece]
        text = "".join(character for character, _ in self.held)
        stop = self.stops.place(text)
        self.ended = stop is not None
        num_shown = self.stops.num_safe(text) if stop is None else stop
        shown, self.held = self.held[:num_shown], [] if self.ended else self.held[num_shown:]
        return _joined(shown)


def _joined(characters: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    groups = itertools.groupby(characters, key=lambda held: held[1])
    return [("".join(character for character, _ in group), mark) for mark, group in groups]
