"""What the host does with a session's records: hand out final tokens, end rows at stops and limits, count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recyclegpt.decoding.generation import Counts, NewTokens
from recyclegpt.decoding.session import StepRecord
from recyclegpt.decoding.stop_strings import StopStrings
from recyclegpt.decoding.strategies import Strategy


class OutputTracker:
    """Follows every row of a batch from record to record. A row that has ended is not looked at again."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        context_length: int,
        strategy: Strategy,
        counts: Counts,
        stop_tokens: Sequence[int] = (),
        stop_strings: StopStrings | None = None,
    ) -> None:
        self.strategy, self.counts = strategy, counts
        self.stop_tokens, self.stop_strings = frozenset(stop_tokens), stop_strings or None
        self.num_written = [len(prompt) for prompt in prompts]
        """Positions of each row that were handed out, the prompt's among them."""
        wanted = [length + max_new_tokens for length in self.num_written]
        self.limits = [min(length, context_length) for length in wanted]
        self._at_limit = ["length" if length <= context_length else "context" for length in wanted]
        self.finish: list[str | None] = [
            reason if written >= limit else None
            for written, limit, reason in zip(self.num_written, self.limits, self._at_limit, strict=True)
        ]
        """Why each row ended, as `Generation.finish`; None while it has not."""
        self._texts: list[list[int]] = [[] for _ in prompts]
        self._stopped: list[int] = []
        self._prefilled = False

    @property
    def may_stop(self) -> bool:
        """Whether a row may end before its limit."""
        return bool(self.stop_tokens or self.stop_strings)

    @property
    def unfinished(self) -> list[int]:
        """Rows that have not ended."""
        return [row for row, reason in enumerate(self.finish) if reason is None]

    @property
    def fewest_steps(self) -> int:
        """Steps until the longest row may have reached its limit, if every drafted token is accepted; at least one."""
        missing = max((self.limits[row] - self.num_written[row] for row in self.unfinished), default=0)
        return max(1, -(-missing // (self.strategy.num_recycled + 1)))

    def pop_stopped(self) -> list[int]:
        """Rows that ended at a stop since the last call."""
        stopped, self._stopped = self._stopped, []
        return stopped

    def update(self, record: StepRecord[list[int]], tokens_BS: list[list[int]], first_slot: int) -> Iterator[NewTokens]:
        """Hand out what the prefill, or a step after it, made final; `tokens_BS` is the text from `first_slot` on."""
        for row in self.unfinished:
            self.counts.num_row_steps += self._prefilled
            self.counts.num_matched += record.num_matched[row]
            self.counts.verified_at.update(range(1, record.num_verified[row] + 1))
            self.counts.accepted_at.update(range(1, record.num_accepted[row] + 1))
            # A decoder that accepts drafted tokens unverified hands them out at once.
            unverified = 0 if self.strategy.lossless else record.num_drafted[row]
            begin = self.num_written[row]
            end = min(record.position[row] + 1 + unverified, self.limits[row])
            yield from self._emit(row, tokens_BS[row][begin - first_slot : end - first_slot], record.position[row])
        self._prefilled = True

    def _emit(self, row: int, tokens: list[int], position: int) -> Iterator[NewTokens]:
        end = next((index + 1 for index, token in enumerate(tokens) if token in self.stop_tokens), None)
        if self.stop_strings is not None:
            text = self._texts[row]
            found = self.stop_strings.first_stop(text + tokens, len(tokens))
            if found is not None:
                end = min(found - len(text), len(tokens) if end is None else end)
            text += tokens[:end]
        tokens = tokens[:end]
        begin = self.num_written[row]
        self.num_written[row] += len(tokens)
        self.counts.num_tokens += len(tokens)
        if end is not None:
            self.finish[row] = "stop"
            self._stopped.append(row)
        elif self.num_written[row] >= self.limits[row]:
            self.finish[row] = self._at_limit[row]
        if tokens:
            # Of a step's final tokens all are the drafter's but the backbone's own, at `position`.
            yield NewTokens(row, tokens, [slot != position for slot in range(begin, begin + len(tokens))])
