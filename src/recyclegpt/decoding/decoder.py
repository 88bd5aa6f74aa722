"""The loop that all strategies share: prefill, then one backbone pass and one module pass a cycle.

Both caches hold at every moment exactly the rows that training has seen: the backbone reads each token once, and the
module re-reads every pair (h_t, x_{t+1}) as soon as the true state h_t exists, over the provisional rows it made while
recycling. B batch, T tokens of a block, S positions, C model width, m recycled tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recyclegpt.decoding.generation import Counts, Emitted, Generation
from recyclegpt.decoding.sampling import Sampler, SamplingConfig
from recyclegpt.decoding.strategies import Strategy, make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.models import RecycleGPT, StaticCache

READ_BUCKET = 64
"""Attention reads a multiple of this many slots, so that few shapes occur."""


class Decoder:
    """A model made ready to decode: a copy with weights cast once, in evaluation mode."""

    def __init__(self, model: RecycleGPT, dtype: torch.dtype | None = None) -> None:
        """Share the model's weights if it already has this dtype (or None is given); else hold a cast copy."""
        if dtype is not None and model.lm_head.weight.dtype != dtype:
            model = copy.deepcopy(model).to(dtype)
        self.model = model

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        strategy: Strategy,
        max_new_tokens: int,
        sampler: Sampler,
        stop_tokens: Sequence[int] = (),
        counts: Counts | None = None,
    ) -> Iterator[Emitted]:
        """Yield tokens as they become final; alternating decoding emits recycled ones with the prompt's pass already.

        Rows may differ in prompt length, stop and acceptance; a row that has ended waits without disturbing the others.
        A row ends at a stop token, after `max_new_tokens`, or where prompt and text fill the context.

        Raises:
            ConfigError: a prompt is empty or longer than the context, or the strategy needs a module the model lacks.
        """
        self._check(prompts, strategy, max_new_tokens)
        counts = Counts() if counts is None else counts
        if max_new_tokens == 0:
            return
        stops = frozenset(stop_tokens)
        batch = _Batch(self.model, prompts, strategy, max_new_tokens, sampler)
        was_training = self.model.training
        self.model.eval()
        try:
            batch.prefill()
            counts.num_backbone_passes += 1
            yield from batch.emit(stops, counts)
            while not batch.all_done:
                batch.cycle(counts)
                counts.num_backbone_passes += 1
                yield from batch.emit(stops, counts)
        finally:
            self.model.train(was_training)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        strategy: Strategy,
        max_new_tokens: int,
        sampling: SamplingConfig | None = None,
        stop_tokens: Sequence[int] = (),
        seed: int = 0,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Generation:
        """Decode until every row has ended (`stream`). Row b draws with `generators[b]`, or one seeded `seed + b`."""
        sampling = SamplingConfig() if sampling is None else sampling
        device = self.model.lm_head.weight.device
        if generators is None:
            sampler = Sampler.seeded(sampling, len(prompts), seed, device)
        else:
            sampler = Sampler(sampling, generators)
        result = Generation([[] for _ in prompts], [[] for _ in prompts], ["length"] * len(prompts))
        for row, tokens, recycled in self.stream(
            prompts, strategy, max_new_tokens, sampler, stop_tokens, counts=result.counts
        ):
            result.tokens[row] += tokens
            result.recycled[row] += recycled
        for row, tokens in enumerate(result.tokens):
            if tokens and tokens[-1] in set(stop_tokens):
                result.finish[row] = "stop"
            elif len(tokens) < max_new_tokens:
                result.finish[row] = "context"
        return result

    def _check(self, prompts: Sequence[Sequence[int]], strategy: Strategy, max_new_tokens: int) -> None:
        context, vocabulary = self.model.config.context_length, self.model.config.vocab_size
        problems = [
            f"prompt {row}: {len(prompt)} tokens, but the context holds {context}; shorten the prompt"
            for row, prompt in enumerate(prompts)
            if len(prompt) > context
        ]
        problems += [
            f"prompt {row}: it is empty; begin with the tokenizer's end token"
            for row, prompt in enumerate(prompts)
            if not len(prompt)
        ]
        problems += [
            f"prompt {row}: token {max(prompt) if max(prompt) >= vocabulary else min(prompt)} is outside the "
            f"vocabulary of {vocabulary}; use the tokenizer the model was trained with"
            for row, prompt in enumerate(prompts)
            if len(prompt) and not 0 <= min(prompt) <= max(prompt) < vocabulary
        ]
        if not prompts:
            problems.append("prompts: none given")
        if max_new_tokens < 0:
            problems.append(f"max_new_tokens: {max_new_tokens} is negative")
        if strategy.num_recycled and self.model.recyclable is None:
            problems.append(
                f"strategy: {strategy.name} needs a recyclable module and this model has none (recycle.num_layers=0); "
                "use autoregressive"
            )
        if problems:
            raise ConfigError(problems)


def generate(
    model: RecycleGPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    strategy: str | Strategy = "verified",
    num_recycled: int = 1,
    sampling: SamplingConfig | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Generation:
    """Continue prompts with a strategy, given by name or as an object. For repeated calls keep a `Decoder`.

    Args:
        model: on its device.
        prompts: token ids, one list a row; rows may differ in length.
        max_new_tokens: most tokens to add to each.
        strategy: `autoregressive`, `alternating` (the paper's) or `verified` (lossless).
        num_recycled: tokens recycled per backbone pass, where the strategy is a name.
        sampling: greedy if None.
        stop_tokens: a row ends with the first of these.
        seed: row b draws from a generator seeded `seed + b`.
        dtype: of the weights while decoding; None for the model's own.

    Raises:
        ConfigError: naming everything that cannot work.
    """
    if isinstance(strategy, str):
        strategy = make_strategy(strategy, num_recycled)
    return Decoder(model, dtype).generate(prompts, strategy, max_new_tokens, sampling, stop_tokens, seed)


class _Batch:
    """The state of one batch while it is decoded.

    `tokens_BS` is the text at its positions. `start_B` is the position of the backbone's last token: the next block is
    that token and the m recycled after it. `final_B` counts the positions that will not change any more.
    """

    def __init__(
        self,
        model: RecycleGPT,
        prompts: Sequence[Sequence[int]],
        strategy: Strategy,
        max_new_tokens: int,
        sampler: Sampler,
    ) -> None:
        self.model, self.strategy, self.sampler = model, strategy, sampler
        self.m = strategy.num_recycled
        weight = model.lm_head.weight
        lengths = [len(prompt) for prompt in prompts]
        self.limits = [min(length + max_new_tokens, model.config.context_length) for length in lengths]
        # The last cycle may write m tokens beyond the limit and propose m more.
        num_slots = max(self.limits) + 2 * self.m + 1
        self.tokens_BS = torch.zeros(len(prompts), num_slots, dtype=torch.long, device=weight.device)
        for row, prompt in enumerate(prompts):
            self.tokens_BS[row, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
        self.cache = StaticCache(model.config, model.config.num_layers, len(prompts), num_slots, like=weight)
        self.recycle_cache = StaticCache(
            model.config, model.recycle_config.num_layers if self.m else 0, len(prompts), num_slots, like=weight
        )
        self.start_B = torch.tensor(lengths, device=weight.device)
        self.block_T = torch.arange(self.m + 1, device=weight.device)
        self.proposed: list[Tensor | None] = []
        self.emitted = list(lengths)
        self.done = [length >= limit for length, limit in zip(lengths, self.limits, strict=True)]
        self.furthest = max(lengths)

    @property
    def all_done(self) -> bool:
        return all(self.done)

    def prefill(self) -> None:
        """Read the prompts, padded on the right to one length. Padding lies beyond every query until overwritten."""
        width = self.furthest
        positions_BT = torch.arange(width, device=self.tokens_BS.device).expand(len(self.tokens_BS), width)
        last_B = self.start_B - 1
        hidden_BTC = self.model.read(
            self.tokens_BS[:, :width], positions_BT, cache=self.cache, num_read=self._num_read()
        )
        token_B, _ = self.sampler.choose(self.model.classify(_at(hidden_BTC, last_B)))
        self._write(self.start_B, token_B)
        self._recycle(hidden_BTC, positions_BT, last_B)

    def cycle(self, counts: Counts) -> None:
        """One backbone pass over the newest m + 1 tokens, one module pass over the pairs it completes, m proposals."""
        positions_BT = self.start_B[:, None] + self.block_T
        block_BT = self.tokens_BS.gather(1, positions_BT)
        hidden_BTC = self.model.read(block_BT, positions_BT, cache=self.cache, num_read=self._num_read())
        logits_BTV = self.model.classify(hidden_BTC)
        kept_B, token_B = self.strategy.judge(logits_BTV, block_BT[:, 1:], self.proposed, self.sampler)
        if self.m:
            self._count(counts, logits_BTV, block_BT, kept_B)
        # A row that has ended stays where it is.
        active_B = ~torch.tensor(self.done, device=kept_B.device)
        next_B = torch.where(active_B, self.start_B + kept_B + 1, self.start_B)
        self._write(next_B, token_B)
        self.start_B = next_B
        self._recycle(hidden_BTC, positions_BT, kept_B)

    def emit(self, stops: frozenset[int], counts: Counts) -> Iterator[Emitted]:
        """Hand out what became final, cut at stop tokens and limits, and mark the rows that ended."""
        start = self.start_B.tolist()
        self.furthest = max(start) + 1
        unchecked = 0 if self.strategy.lossless else self.m
        for row, done in enumerate(self.done):
            if done:
                continue
            begin, end = self.emitted[row], min(start[row] + 1 + unchecked, self.limits[row])
            tokens = self.tokens_BS[row, begin:end].tolist()
            # In a cycle's run of final tokens all are the module's but the backbone's own, at `start`.
            recycled = [position != start[row] for position in range(begin, end)]
            stop = next((index for index, token in enumerate(tokens) if token in stops), None)
            if stop is not None:
                tokens, recycled = tokens[: stop + 1], recycled[: stop + 1]
            self.emitted[row] += len(tokens)
            self.done[row] = stop is not None or self.emitted[row] >= self.limits[row]
            counts.num_tokens += len(tokens)
            if tokens:
                yield Emitted(row, tokens, recycled)

    def _recycle(self, hidden_BTC: Tensor, positions_BT: Tensor, last_B: Tensor) -> None:
        """Let the module read the true pairs of this block, then propose m tokens after row `last_B`."""
        self.proposed = []
        if not self.m:
            return
        following_BT = self.tokens_BS.gather(1, positions_BT + 1)
        recycled_BTC = self.model.recycle(
            following_BT, hidden_BTC, positions_BT, cache=self.recycle_cache, num_read=self._num_read()
        )
        state_BC = _at(recycled_BTC, last_B)
        for step in range(1, self.m + 1):
            token_B, distribution_BV = self.sampler.choose(self.model.classify(state_BC))
            self._write(self.start_B + step, token_B)
            self.proposed.append(distribution_BV)
            if step < self.m:
                # The module's own state stands in for the one not computed yet: r_t for h_{t+1}, at position t + 1.
                positions_B1 = (self.start_B + step - 1)[:, None]
                state_BC = self.model.recycle(
                    token_B[:, None],
                    state_BC[:, None],
                    positions_B1,
                    cache=self.recycle_cache,
                    num_read=self._num_read(),
                ).squeeze(1)

    def _write(self, positions_B: Tensor, token_B: Tensor) -> None:
        """Put a token at a position of every row that has not ended."""
        kept_B = self.tokens_BS.gather(1, positions_B[:, None]).squeeze(1)
        done_B = torch.tensor(self.done, device=token_B.device)
        self.tokens_BS.scatter_(1, positions_B[:, None], torch.where(done_B, kept_B, token_B)[:, None])

    def _count(self, counts: Counts, logits_BTV: Tensor, block_BT: Tensor, kept_B: Tensor) -> None:
        agreed_B = (logits_BTV[:, :-1].argmax(dim=-1) == block_BT[:, 1:]).sum(dim=1)
        for done, agreed, kept in zip(self.done, agreed_B.tolist(), kept_B.tolist(), strict=True):
            if not done:
                counts.num_checked += self.m
                counts.num_agreed += agreed
                counts.num_kept += kept

    def _num_read(self) -> int:
        """Slots that any pass of this cycle can reach, as a multiple of the bucket."""
        num_slots = self.furthest + 2 * self.m + 1
        return min(-(-num_slots // READ_BUCKET) * READ_BUCKET, self.tokens_BS.shape[1])


def _at(states_BTC: Tensor, index_B: Tensor) -> Tensor:
    """Row `index_B[b]` of each batch entry, `(B, C)`."""
    return states_BTC[torch.arange(len(index_B), device=index_B.device), index_B]
