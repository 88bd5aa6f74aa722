"""What lm-eval asks of a model: log-likelihoods of given continuations under three scorings, and continuations.

One forward pass over whole rows gives all three scorings: the module is unrolled as in training, which equals what
decoding computes (tested).

B batch, T positions, C model width, V vocabulary, K sources (0 the backbone, k the module's step k), N scored tokens.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.decoding import Decoder, SamplingConfig, StopStrings, Strategy
from recyclegpt.models import RecycleGPT

log = logging.getLogger("recyclegpt")

SCORINGS = ("backbone", "module", "alternating")
LOGITS_AT_ONCE = 1 << 24
"""Logits held in fp32 at a time: 64 MiB."""


class Pair(NamedTuple):
    """Token ids of the context, at least one, and of the text to score."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Scored(NamedTuple):
    log_likelihood: float
    """Nats, summed over its tokens; 0 for an empty one."""
    is_greedy: bool
    """Whether every token is the most likely one of its source."""


@dataclass
class Scorer:
    """Scores continuations in batches under all scorings at once, and caches the results.

    With p the position of a token in context and continuation, x_0 the first:

    - `backbone`: log p_backbone(x_p), from h_{p-1}.
    - `module`: log p_recycle(x_p), from r_{p-2}. A token with fewer than two before it is scored by the backbone.
    - `alternating`: the distribution that alternating decoding with `num_recycled` = m, started after the context,
      would have drawn the token from: the backbone's for the first token and every (m + 1)-th after it, the module's
      step k for the k-th token after one of these.
    """

    model: RecycleGPT
    scorings: Sequence[str] = SCORINGS
    num_recycled: int = 1
    batch_size: int = 16
    autocast: torch.dtype | None = None
    """Dtype to compute in, as training's mixed precision does; None for the model's own."""
    num_cut: int = 0
    """Pairs whose oldest tokens did not fit into the context."""
    _known: dict[Pair, dict[str, Scored]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.model.recyclable is None and set(self.scorings) != {"backbone"}:
            log.warning("the model has no recyclable module, so the backbone alone is scored")
            self.scorings = ("backbone",)

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Scored]]:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        # Longest first: rows of a batch are of similar length, and memory runs out at once or never.
        new.sort(key=lambda pair: -len(pair.context) - len(pair.continuation))
        cut_before = self.num_cut
        with tqdm(total=len(new), desc="scoring", unit="text", disable=None, leave=False) as progress:
            for begin in range(0, len(new), self.batch_size):
                batch = new[begin : begin + self.batch_size]
                self._known.update(zip(batch, self._score(batch), strict=True))
                progress.update(len(batch))
        if cut := self.num_cut - cut_before:
            log.warning(
                "%d of %d texts are longer than the context of %d tokens; their oldest tokens were left out",
                cut, len(new), self.model.config.context_length,
            )  # fmt: skip
        return [self._known[pair] for pair in pairs]

    def token_log_p(self, pairs: Sequence[Pair]) -> list[dict[str, Tensor]]:
        """Log-probability of each token of every continuation under every scoring, fp64 on the CPU; one batch."""
        row_N, scored = self._token_scores(pairs)
        counts = row_N.bincount(minlength=len(pairs)).tolist()
        split = {name: log_p_N.cpu().split(counts) for name, (log_p_N, _) in scored.items()}
        return [{name: parts[b] for name, parts in split.items()} for b in range(len(pairs))]

    def _score(self, pairs: Sequence[Pair]) -> list[dict[str, Scored]]:
        row_N, scored = self._token_scores(pairs)
        sums: list[dict[str, Scored]] = [{} for _ in pairs]
        for name, (log_p_N, best_N) in scored.items():
            zeros_B2 = torch.zeros(len(pairs), 2, dtype=torch.float64, device=row_N.device)
            sums_B2 = zeros_B2.index_add(0, row_N, torch.stack([log_p_N, (~best_N).double()], dim=1))
            for b, (total, num_missed) in enumerate(sums_B2.tolist()):
                sums[b][name] = Scored(total, num_missed == 0)
        return sums

    def _token_scores(self, pairs: Sequence[Pair]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """One batch, right-padded: the row of every scored token, its log-probability, and whether it is the argmax."""
        longest = self.model.config.context_length + 1  # the last token is scored and never read
        rows, starts = [], []
        for context, continuation in pairs:
            row = (*context, *continuation)[-longest:]
            self.num_cut += len(row) < len(context) + len(continuation)
            rows.append(row)
            starts.append(max(len(row) - len(continuation), 1))
        places = [(b, p) for b, row in enumerate(rows) for p in range(starts[b], len(row))]
        row_N, place_N = torch.tensor(places, dtype=torch.long, device=self.model.device).reshape(-1, 2).T
        start_N = torch.tensor(starts, device=self.model.device)[row_N]
        rules = {
            "backbone": torch.zeros_like(place_N),
            "module": (place_N >= 2).long(),
            "alternating": (place_N - start_N) % (self.num_recycled + 1),
        }
        source_by_scoring = {name: rules[name] for name in self.scorings}
        num_steps = max((int(source_N.max()) for source_N in source_by_scoring.values() if places), default=0)
        tokens_BS, states = self._states(rows, num_steps)
        log_p_KN, best_KN = self._token_log_p(states, source_by_scoring, row_N, place_N, tokens_BS)
        return row_N, {
            name: (log_p_KN.gather(0, source_N[None]).squeeze(0), best_KN.gather(0, source_N[None]).squeeze(0))
            for name, source_N in source_by_scoring.items()
        }

    @torch.no_grad()
    def _states(self, rows: Sequence[Sequence[int]], num_steps: int) -> tuple[Tensor, list[Tensor]]:
        """The rows as one tensor, and states `(B, T, C)` of each source: row t of source k predicts token t + 1 + k."""
        T = max(max(map(len, rows)) - 1, 1)
        tokens_BS = torch.zeros(len(rows), T + max(num_steps, 1), dtype=torch.long)
        for b, row in enumerate(rows):
            tokens_BS[b, : len(row)] = torch.tensor(row)
        tokens_BS = tokens_BS.to(self.model.device)
        views_NBT = torch.stack([tokens_BS[:, step : step + T] for step in range(num_steps + 1)])
        with self._precision():
            states = self.model.states(views_NBT, num_unrolled=num_steps)
        return tokens_BS, [states.hidden_BTC, *states.recycled_KBTC]

    @torch.no_grad()
    def _token_log_p(
        self,
        states: Sequence[Tensor],
        source_by_scoring: dict[str, Tensor],
        row_N: Tensor,
        place_N: Tensor,
        tokens_BS: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each token under each source in use, and whether it is that source's argmax."""
        log_p_KN = torch.zeros(len(states), len(place_N), dtype=torch.float64, device=row_N.device)
        best_KN = torch.zeros(len(states), len(place_N), dtype=torch.bool, device=row_N.device)
        target_N = tokens_BS[row_N, place_N]
        at_once = max(LOGITS_AT_ONCE // self.model.config.vocab_size, 1)
        for k, state_BTC in enumerate(states):
            asked_N = torch.stack([source_N == k for source_N in source_by_scoring.values()]).any(dim=0)
            for index_M in asked_N.nonzero().squeeze(1).split(at_once):
                with self._precision():
                    logits_MV = self.model.logits(state_BTC[row_N[index_M], place_N[index_M] - 1 - k])
                target_M, wide = target_N[index_M], torch.promote_types(logits_MV.dtype, torch.float32)
                log_p_MV = logits_MV.log_softmax(-1, dtype=wide)
                log_p_KN[k, index_M] = log_p_MV.gather(1, target_M[:, None]).squeeze(1).double()
                best_KN[k, index_M] = logits_MV.argmax(-1) == target_M
        return log_p_KN, best_KN

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, dtype=self.autocast, enabled=self.autocast is not None)


class Asked(NamedTuple):
    max_new_tokens: int
    stop: tuple[str, ...]
    """The text ends before the first of these."""
    sampling: SamplingConfig


@dataclass
class BatchGenerator:
    """Generates continuations, `batch_size` at a time, and caches the results by request list.

    If a prompt and its text do not fit into the context, the prompt loses its oldest tokens, but keeps at least half
    the context. A text also ends at the end token. Text n of a list draws from a generator seeded `seed + n`.
    """

    decoder: Decoder
    strategy: Strategy
    tokenizer: TextTokenizer
    batch_size: int = 16
    seed: int = 0
    encode: Callable[[str], list[int]] | None = None
    """From a prompt to its ids; None: as a plain text."""
    num_cut: int = 0
    """Prompts that lost their oldest tokens."""
    _known: dict[tuple[tuple[str, Asked], ...], list[str]] = field(default_factory=dict, repr=False)

    def write(self, asked: Sequence[tuple[str, Asked]]) -> list[str]:
        key = tuple(asked)
        if key not in self._known:
            self._known[key] = self._write(asked)
        return self._known[key]

    def _write(self, asked: Sequence[tuple[str, Asked]]) -> list[str]:
        cut_before, texts = self.num_cut, [""] * len(asked)
        rows = [self._fitting(prompt, settings.max_new_tokens) for prompt, settings in asked]
        groups: dict[Asked, list[int]] = defaultdict(list)
        for number in sorted(range(len(asked)), key=lambda number: -len(rows[number])):
            groups[asked[number][1]].append(number)
        with tqdm(total=len(asked), desc=self.strategy.name, unit="text", disable=None, leave=False) as progress:
            for settings, numbers in groups.items():
                for begin in range(0, len(numbers), self.batch_size):
                    batch = numbers[begin : begin + self.batch_size]
                    for number, text in zip(batch, self._batch(rows, batch, settings), strict=True):
                        texts[number] = text
                    progress.update(len(batch))
        if cut := self.num_cut - cut_before:
            log.warning("%d of %d prompts did not fit into the context; their oldest tokens were left out",
                        cut, len(asked))  # fmt: skip
        return texts

    def _batch(self, rows: list[list[int]], numbers: list[int], settings: Asked) -> list[str]:
        device = self.decoder.model.device
        stop = StopStrings(settings.stop, self.tokenizer.decode)
        generation = self.decoder.generate(
            [rows[number] for number in numbers], self.strategy, settings.max_new_tokens, settings.sampling,
            self.tokenizer.stop_ids, stop_strings=stop,
            generators=[torch.Generator(device).manual_seed(self.seed + number) for number in numbers],
        )  # fmt: skip
        return [stop.cut(self.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in generation.tokens]

    def _fitting(self, prompt: str, max_new_tokens: int) -> list[int]:
        tokens, context = (
            (self.encode or self.tokenizer.encode_prompt)(prompt),
            self.decoder.model.config.context_length,
        )
        room = max(context - max_new_tokens, context // 2, 1)
        self.num_cut += len(tokens) > room
        return tokens[-room:]
