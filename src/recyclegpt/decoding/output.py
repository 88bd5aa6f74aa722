"""What the host does with a session's records: hand out final tokens, cut at stops and limits, count.

B rows, m recycled tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recyclegpt.decoding.generation import Counts, NewTokens
from recyclegpt.decoding.stop_strings import StopStrings
from recyclegpt.decoding.strategies import Strategy


class OutputTracker:
    """Follows every row of a batch from record to record. A row that has ended is not looked at again."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        strategy: Strategy,
        counts: Counts,
        stop_tokens: Sequence[int] = (),
        stop_strings: StopStrings | None = None,
    ) -> None:
        self.strategy, self.counts = strategy, counts
        self.stop_tokens, self.stop_strings = frozenset(stop_tokens), stop_strings
        self.limits = list(limits)
        self.emitted = [len(prompt) for prompt in prompts]
        self.written: list[list[int]] = [[] for _ in prompts]
        self._stopped: list[int] = []
        self.done = [emitted >= limit for emitted, limit in zip(self.emitted, limits, strict=True)]

    @property
    def all_done(self) -> bool:
        """Whether every row has ended."""
        return all(self.done)

    @property
    def fewest_cycles(self) -> int:
        """Cycles until the longest row may have reached its limit, if every recycled token is kept; one at least."""
        going = zip(self.emitted, self.limits, self.done, strict=True)
        missing = max((limit - emitted for emitted, limit, done in going if not done), default=0)
        return max(1, -(-missing // (self.strategy.num_recycled + 1)))

    def pop_stopped(self) -> list[int]:
        """Rows that ended at a stop since the last time this was asked."""
        stopped, self._stopped = self._stopped, []
        return stopped

    def take(
        self,
        record_B5: list[list[int]],
        tokens_BS: list[list[int]],
        first_slot: int,
    ) -> Iterator[NewTokens]:
        """Hand out what one cycle made final.

        Args:
            record_B5: `Session.record_B5` after the cycle.
            tokens_BS: the text from position `first_slot` on, at that time or later: what is final does not change.
            first_slot: at most the first position not handed out of any row that goes on.
        """
        for row, (start, kept, agreed, offered, offered_now) in enumerate(record_B5):
            if self.done[row]:
                continue
            self.counts.num_verified += offered
            self.counts.num_matched += agreed
            self.counts.num_accepted += kept
            # A decoder that keeps recycled tokens unchecked hands them out at once.
            unchecked = 0 if self.strategy.lossless else offered_now
            begin, end = self.emitted[row], min(start + 1 + unchecked, self.limits[row])
            yield from self._emit(row, tokens_BS[row][begin - first_slot : end - first_slot], begin, start)

    def _emit(self, row: int, tokens: list[int], begin: int, start: int) -> Iterator[NewTokens]:
        # In a cycle's run of final tokens all are the module's but the backbone's own, at `start`.
        recycled = [position != start for position in range(begin, begin + len(tokens))]
        end = next((index + 1 for index, token in enumerate(tokens) if token in self.stop_tokens), None)
        if self.stop_strings is not None:
            written = self.written[row] + tokens
            found = self.stop_strings.end(written, len(tokens))
            if found is not None:
                found -= len(self.written[row])
                end = found if end is None else min(end, found)
        if end is not None:
            tokens, recycled = tokens[:end], recycled[:end]
            self._stopped.append(row)
        if self.stop_strings is not None:
            self.written[row] += tokens
        self.emitted[row] += len(tokens)
        self.counts.num_tokens += len(tokens)
        self.done[row] = end is not None or self.emitted[row] >= self.limits[row]
        if tokens:
            yield NewTokens(row, tokens, recycled)
