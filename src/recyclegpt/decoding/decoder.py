"""Generate: the loop around a session that all strategies share."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import torch

from recyclegpt.decoding.cuda_graph import GraphedStep
from recyclegpt.decoding.fuse import fuse
from recyclegpt.decoding.generation import Counts, Generation, NewTokens
from recyclegpt.decoding.output import OutputTracker
from recyclegpt.decoding.sampling import Sampler, SamplingConfig
from recyclegpt.decoding.session import Read, Session
from recyclegpt.decoding.stop_strings import StopStrings
from recyclegpt.decoding.strategies import Strategy, make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.models import MAX_RECYCLED, RecycleGPT

READ_BUCKETS = {"cpu": 64, "cuda": 256}
"""Attention reads a multiple of this many slots, so that few shapes (and few CUDA graphs) occur."""
CHECK_EVERY = {"cpu": 1, "cuda": 8}
"""Cycles between two looks at what was written. Looking makes the host wait for the device; a CPU is its own host."""
CHECK_EVERY_WITHOUT_STOPS = {"cpu": 1, "cuda": 32}
"""The same where nothing but its length ends a text: then no cycle is in vain, and a reader sees no difference."""
SLOTS_OF_GRAPHS = 512
"""Caches of sessions with graphs hold a multiple of this, so that texts of similar length find the same session."""
MAX_IDLE = 8
"""Sessions kept with their CUDA graphs, the last used ones: decoders that take turns find theirs again."""
IDLE_SHARE = 0.25
"""Most of a device's memory that the caches of idle sessions may hold."""


class Decoder:
    """Decodes with a model as it is given; `Decoder.optimised` makes the model ready first."""

    def __init__(self, model: RecycleGPT, compile: bool = False) -> None:  # noqa: A002 - the field's word
        """`compile` runs the passes of a cycle through `torch.compile`, in static shapes; on CUDA cycles are graphs."""
        self.model, self.compiled = model, compile
        self.backbone_states: Read = model.backbone_states
        self.recycle: Read = model.recycle
        if compile:
            self.backbone_states, self.recycle = torch.compile(model.backbone_states), torch.compile(model.recycle)
        self.use_graphs = model.device.type == "cuda"
        self.max_idle, self.max_idle_bytes = MAX_IDLE, memory_for_idle(model.device)
        self._idle: OrderedDict[object, tuple[Session, GraphedStep]] = OrderedDict()

    @classmethod
    def optimised(
        cls,
        model: RecycleGPT,
        dtype: torch.dtype | None = None,
        compile: bool = False,  # noqa: A002
        use_kernels: bool = True,
        release: bool = False,
    ) -> Decoder:
        """A decoder of a fused copy of the model (`fuse`), in this dtype; int8 means int8 weights.

        Raises:
            ConfigError: int8 where the CPU kernels cannot be used.
        """
        return cls(fuse(model, dtype, use_kernels, release), compile)

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        strategy: Strategy,
        max_new_tokens: int,
        sampler: Sampler,
        stop_tokens: Sequence[int] = (),
        counts: Counts | None = None,
        stop_strings: StopStrings | None = None,
    ) -> Iterator[NewTokens]:
        """Yield tokens as they become final; alternating decoding emits recycled ones with the prompt's pass already.

        Rows may differ in prompt length, stop and acceptance; a row that has ended waits without disturbing the others.
        A row ends at a stop token, with the token that completes a stop string, after `max_new_tokens`, or where prompt
        and text fill the context.

        Raises:
            ConfigError: a prompt is empty or longer than the context, or the strategy needs a module the model lacks.
        """
        self._check(prompts, strategy, max_new_tokens)
        counts = Counts() if counts is None else counts
        if max_new_tokens == 0:
            return
        limits = [min(len(prompt) + max_new_tokens, self.model.config.context_length) for prompt in prompts]
        emission = OutputTracker(prompts, limits, strategy, counts, stop_tokens, stop_strings)
        yield from self._run(prompts, strategy, sampler, emission)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        strategy: Strategy,
        max_new_tokens: int,
        sampling: SamplingConfig | None = None,
        stop_tokens: Sequence[int] = (),
        seed: int = 0,
        generators: Sequence[torch.Generator] | None = None,
        stop_strings: StopStrings | None = None,
    ) -> Generation:
        """Decode until every row has ended (`stream`). Row b draws with `generators[b]`, or one seeded `seed + b`."""
        sampling = SamplingConfig() if sampling is None else sampling
        if generators is None:
            sampler = Sampler.seeded(sampling, len(prompts), seed, self.model.device)
        else:
            sampler = Sampler(sampling, generators)
        result = Generation([[] for _ in prompts], [[] for _ in prompts], ["length"] * len(prompts))
        for row, tokens, recycled in self.stream(
            prompts, strategy, max_new_tokens, sampler, stop_tokens, result.counts, stop_strings
        ):
            result.tokens[row] += tokens
            result.recycled[row] += recycled
        for row, tokens in enumerate(result.tokens):
            by_token = bool(tokens) and tokens[-1] in set(stop_tokens)
            if by_token or (stop_strings is not None and stop_strings.end(tokens, len(tokens)) is not None):
                result.finish[row] = "stop"
            elif len(tokens) < max_new_tokens:
                result.finish[row] = "context"
        return result

    def _run(
        self, prompts: Sequence[Sequence[int]], strategy: Strategy, sampler: Sampler, emission: OutputTracker
    ) -> Iterator[NewTokens]:
        """Alternate between cycles on the device and a look at what they wrote."""
        m, limits = strategy.num_recycled, emission.limits
        may_stop = bool(emission.stop_tokens or emission.stop_strings)
        check_every = (CHECK_EVERY if may_stop else CHECK_EVERY_WITHOUT_STOPS)[self.model.device.type]
        # A row may stand at its limit, propose m tokens there, and the module's rows look one token further.
        key, session, cycle = self._take_session(strategy, sampler, len(prompts), max(limits) + m + 2)
        furthest = max(len(prompt) for prompt in prompts)
        was_training = self.model.training
        self.model.eval()
        try:
            session.begin(prompts, limits, self._num_slots_read(session, furthest))
            emission.counts.num_backbone_passes += 1
            records = [session.record_B5]
            while True:
                # The one place where the host waits for the device.
                rows = torch.stack(records).tolist()
                furthest = max(start for start, *_ in rows[-1])
                yield from self._hand_out(session, rows, furthest, emission)
                if emission.all_done:
                    return
                for row in emission.pop_stopped():
                    session.limit_B[row] = session.position_B[row]
                records = []
                for _ in range(min(check_every, emission.fewest_cycles)):
                    session.sampler.refill()
                    cycle(self._num_slots_read(session, furthest))
                    emission.counts.num_backbone_passes += 1
                    records.append(session.record_B5 if check_every == 1 else session.record_B5.clone())
                    furthest += m + 1
        finally:
            self.model.train(was_training)
            if isinstance(cycle, GraphedStep):
                self._idle[key] = session, cycle
                self._let_go()

    def _hand_out(
        self, session: Session, records: list[list[list[int]]], furthest: int, emission: OutputTracker
    ) -> Iterator[NewTokens]:
        going = [slot for slot, done in zip(emission.emitted, emission.done, strict=True) if not done]
        if not going:
            return
        first = min(going)
        tokens_BS = session.tokens_BS[:, first : furthest + session.m + 1].tolist()
        for record in records:
            yield from emission.take(record, tokens_BS, first)

    def _take_session(
        self, strategy: Strategy, sampler: Sampler, batch: int, num_slots: int
    ) -> tuple[object, Session, Callable[[int], None]]:
        """A session and its cycle. On CUDA an idle one that fits is taken, since its graphs are made.

        A stream that has not ended keeps its own.
        """
        if self.compiled:
            num_slots = self.model.config.context_length + MAX_RECYCLED + 2  # one shape for every length of text
        if self.use_graphs:
            num_slots = -(-num_slots // SLOTS_OF_GRAPHS) * SLOTS_OF_GRAPHS
        key = (strategy, sampler.config, batch, num_slots)
        if key in self._idle:
            session, graphed = self._idle.pop(key)
            session.sampler.generators = sampler.generators
            return key, session, graphed
        session = Session(self.model, strategy, sampler, batch, num_slots, self.backbone_states, self.recycle)
        return key, session, GraphedStep(session.cycle) if self.use_graphs else session.cycle

    def keep_sessions(self, number: int) -> None:
        """Keep so many idle sessions with their graphs, whatever memory they take: who times texts wants no capture.

        The memory ends with an error that says so; a capture in a figure would not be seen.
        """
        self.max_idle, self.max_idle_bytes = max(number, MAX_IDLE), math.inf

    def forget(self) -> None:
        """Let go of all idle sessions and their graphs."""
        self._idle.clear()

    def _let_go(self) -> None:
        """Drop the idle sessions that were not used for longest, where they are many or their caches large."""
        while self._idle:
            held = sum(session.cache_bytes for session, _ in self._idle.values())
            if len(self._idle) <= self.max_idle and held <= self.max_idle_bytes:
                return
            self._idle.popitem(last=False)

    def _num_slots_read(self, session: Session, furthest: int) -> int:
        """Slots that any pass of this cycle can reach, as a multiple of the bucket."""
        return min(self.bucketed(furthest + 2 * session.m + 2), session.tokens_BS.shape[1])

    def bucketed(self, num_slots: int) -> int:
        """The slots that attention reads where it needs so many."""
        bucket = READ_BUCKETS[self.model.device.type]
        return -(-num_slots // bucket) * bucket

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


def memory_for_idle(device: torch.device) -> float:
    """Bytes that caches may hold while nobody uses them."""
    return IDLE_SHARE * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else math.inf


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
    confidence: float = 0.0,
    stop_strings: StopStrings | None = None,
) -> Generation:
    """Continue prompts with a strategy, given by name or as an object. For repeated calls keep a `Decoder.optimised`.

    Args:
        model: on its device.
        prompts: token ids, one list a row; rows may differ in length.
        max_new_tokens: most tokens to add to each.
        strategy: `autoregressive`, `alternating` (the paper's) or `verified` (lossless).
        num_recycled: tokens recycled per backbone pass, where the strategy is a name.
        sampling: greedy if None.
        stop_tokens: a row ends with the first of these.
        seed: row b draws from a generator seeded `seed + b`.
        dtype: of the weights while decoding; None for the model's own; int8 for int8 weights, on a CPU.
        confidence: recycle only while the module's largest probability is above this, where the strategy is a name.
        stop_strings: a row also ends with the token that completes one of these.

    Raises:
        ConfigError: naming everything that cannot work.
    """
    if isinstance(strategy, str):
        strategy = make_strategy(strategy, num_recycled, confidence)
    decoder = Decoder.optimised(model, dtype)
    return decoder.generate(prompts, strategy, max_new_tokens, sampling, stop_tokens, seed, stop_strings=stop_strings)
