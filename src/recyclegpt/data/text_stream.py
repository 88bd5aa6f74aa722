"""Token ids to text, one id at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence


class TextStream:
    """Turns ids into text as they come; all that is returned is together what `decode` gives.

    Bytes of an unfinished character wait for the next id, and so does a run of ids that stand for single bytes: one bad
    byte in it changes what the others become.

    Args:
        decode: turns ids into text; bytes that are not UTF-8 become U+FFFD.
        byte_ids: ids that stand for a single byte.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], byte_ids: Collection[int]) -> None:
        self._decode = decode
        self._byte_ids = byte_ids
        self._recent: list[int] = []
        """Ids returned last, which decide about a space before what follows, then those that wait."""
        self._num_returned = 0

    def step(self, token_id: int) -> str:
        """Text that is final with this id; often one word, sometimes empty."""
        self._recent.append(token_id)
        if token_id in self._byte_ids:
            return ""
        text = self._pending()
        return "" if text.endswith("\ufffd") else self._return(text)

    def finish(self) -> str:
        """What was still pending after the last id (an unfinished character shows as U+FFFD)."""
        return self._return(self._pending())

    def _pending(self) -> str:
        before = self._decode(self._recent[: self._num_returned])
        return self._decode(self._recent)[len(before) :]

    def _return(self, text: str) -> str:
        if text:
            self._recent = self._recent[self._num_returned :]
            self._num_returned = len(self._recent)
        return text
