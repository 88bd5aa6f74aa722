"""Strings that end a text, found while tokens come in; a stop may end on any token, recycled or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from recyclegpt.errors import ConfigError

Decode = Callable[[list[int]], str]
"""Token ids to text, as `Tokenizer.decode`."""


class StopStrings:
    """Finds the first of some strings in what a decoder writes; the prompt is not searched."""

    def __init__(self, strings: Sequence[str], decode: Decode) -> None:
        """Raises:
        ConfigError: a string is empty, or no string at all.
        """
        if any(not isinstance(string, str) or not string for string in strings):
            raise ConfigError("stop_strings: an empty string would stop every text at once; leave it out")
        self.strings, self.decode = list(strings), decode
        # A token of a byte-level tokenizer holds at least one byte; a special token holds none.
        self.window = max((len(string.encode()) for string in strings), default=0) + 8

    def end(self, tokens: list[int], num_new: int) -> int | None:
        """How many of `tokens` there are when the first stop string is complete; None if the new ones complete none."""
        if not self.strings:
            return None
        begin = max(0, len(tokens) - num_new - self.window)
        if not self._holds_stop(tokens[begin:]):
            return None
        for end in range(len(tokens) - num_new + 1, len(tokens) + 1):
            if self._holds_stop(tokens[begin:end]):
                return end
        return len(tokens)

    def _holds_stop(self, tokens: list[int]) -> bool:
        text = self.decode(tokens)
        return any(string in text for string in self.strings)


class TextStreamer:
    """Text for a reader while it is written: whole characters only, and nothing of a stop string.

    A piece that may be the beginning of a stop string is held back until it is clear that it is not.
    """

    def __init__(self, strings: Sequence[str], step: Callable[[int], str], finish: Callable[[], str]) -> None:
        """`step` gives the text that a token completes, `finish` what is left at the end."""
        self.strings, self.step, self.finish = list(strings), step, finish
        self.held: list[tuple[str, bool]] = []
        self.ended = False

    def add(self, token: int, mark: bool) -> list[tuple[str, bool]]:
        """Pieces that may be shown now, each with its mark."""
        return self._release(self.step(token), mark)

    def end(self) -> list[tuple[str, bool]]:
        """What was held back, when no more tokens come."""
        pieces = self._release(self.finish(), False)
        rest, self.held = self.held, []
        return pieces + rest

    def _release(self, piece: str, mark: bool) -> list[tuple[str, bool]]:
        if self.ended:
            return []
        if piece:
            self.held.append((piece, mark))
        text = "".join(piece for piece, _ in self.held)
        found = [place for place in (text.find(string) for string in self.strings) if place >= 0]
        if found:
            self.ended = True
            safe = min(found)
        else:
            safe = len(text) - max((_overlap(text, string) for string in self.strings), default=0)
        shown: list[tuple[str, bool]] = []
        kept: list[tuple[str, bool]] = []
        for piece, its_mark in self.held:
            if piece[:safe]:
                shown.append((piece[:safe], its_mark))
            if piece[safe:]:
                kept.append((piece[safe:], its_mark))
            safe = max(0, safe - len(piece))
        self.held = [] if self.ended else kept
        return shown


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that begins `string`."""
    return next((size for size in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:size])), 0)
