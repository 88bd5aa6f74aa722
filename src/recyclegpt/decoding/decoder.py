"""The loop around a session that all strategies share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import torch

from recyclegpt.decoding.cuda_graph import GraphedStep
from recyclegpt.decoding.drafters.module import ModelPass
from recyclegpt.decoding.fuse import fuse
from recyclegpt.decoding.generation import Counts, Generation, NewTokens
from recyclegpt.decoding.output import OutputTracker
from recyclegpt.decoding.sampling import Sampler, SamplingConfig
from recyclegpt.decoding.session import Session, StepRecord
from recyclegpt.decoding.stop_strings import StopStrings
from recyclegpt.decoding.strategies import Strategy, make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.models import MAX_RECYCLED, RecycleGPT

READ_BUCKETS = {"cpu": 64, "cuda": 256}
"""Attention reads a multiple of this many slots, so that few shapes (and few CUDA graphs) occur."""
CHECK_EVERY = {"cpu": 1, "cuda": 8}
"""Steps between two looks at what was written. Looking makes the host wait for the device; a CPU is its own host."""
CHECK_EVERY_WITHOUT_STOPS = {"cpu": 1, "cuda": 32}
"""The same where nothing but its length ends a text: then no step is wasted, and a reader sees no difference."""
SLOTS_OF_GRAPHS = 512
"""Caches of sessions with graphs hold a multiple of this, so that texts of similar length find the same session."""
MAX_IDLE = 4
"""Most recently used sessions that are kept with their CUDA graphs: decoders that take turns find theirs again."""


class Decoder:
    """Decodes with a model as it is given; `Decoder.optimised` prepares the model first."""

    def __init__(self, model: RecycleGPT, compile: bool = False) -> None:  # noqa: A002 - the field's word
        """`compile` runs the passes of a step through `torch.compile`. On CUDA steps are graphs in either case."""
        self.model, self.compiled = model, compile
        self.backbone_states: ModelPass = model.backbone_states
        self.recycle: ModelPass = model.recycle
        if compile:
            self.backbone_states, self.recycle = torch.compile(model.backbone_states), torch.compile(model.recycle)
        self.spare_slots = 0 if model.recyclable is None else model.recyclable.spare_rows
        self.use_graphs = model.device.type == "cuda"
        self.max_idle = MAX_IDLE
        """Raised by benchmarks, which may not capture graphs anew."""
        self._idle: OrderedDict[object, tuple[Session, GraphedStep]] = OrderedDict()

    @classmethod
    def optimised(
        cls,
        model: RecycleGPT,
        dtype: torch.dtype | None = None,
        compile: bool = False,  # noqa: A002
        use_kernels: bool = True,
        release: bool = False,
        draft_dtype: torch.dtype | None = None,
    ) -> Decoder:
        """A decoder of a fused copy of the model (`fuse`), in this dtype; int8 means int8 weights.

        Raises:
            ConfigError: int8 where the CPU kernels cannot be used.
        """
        return cls(fuse(model, dtype, use_kernels, release, draft_dtype), compile)

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
        """Yield tokens as they become final; alternating decoding yields drafted ones with the prefill already.

        A row ends at a stop token, with the token that completes a stop string, after `max_new_tokens`, or where prompt
        and text fill the context. Until the last has ended it waits without disturbing the others.

        Raises:
            ConfigError: a prompt is empty or longer than the context, or the strategy needs a module the model lacks.
        """
        counts = Counts() if counts is None else counts
        tracker = self._track(prompts, strategy, max_new_tokens, counts, stop_tokens, stop_strings)
        yield from self._run(prompts, strategy, sampler, tracker)

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
        """Decode until every row has ended (`stream`). Row b draws with `generators[b]`, or one seeded `seed + b`.

        Coupled sampling looks at a generator's seed alone, so calling again with the same ones draws the same.

        Raises:
            ConfigError: as `stream`, or there are more or fewer generators than prompts.
        """
        sampling, counts = sampling or SamplingConfig(), Counts()
        if generators is None:
            sampler = Sampler.seeded(sampling, len(prompts), seed, self.model.device)
        elif len(generators) == len(prompts):
            sampler = Sampler(sampling, generators)
        else:
            raise ConfigError(f"generators: {len(generators)} for {len(prompts)} prompts")
        tracker = self._track(prompts, strategy, max_new_tokens, counts, stop_tokens, stop_strings)
        tokens: list[list[int]] = [[] for _ in prompts]
        drafted: list[list[bool]] = [[] for _ in prompts]
        for new in self._run(prompts, strategy, sampler, tracker):
            tokens[new.row] += new.tokens
            drafted[new.row] += new.drafted
        return Generation(tokens, drafted, [str(reason) for reason in tracker.finish], counts)

    @torch.no_grad()
    def _run(
        self, prompts: Sequence[Sequence[int]], strategy: Strategy, sampler: Sampler, tracker: OutputTracker
    ) -> Iterator[NewTokens]:
        """Alternate between steps on the device and a look at what they wrote."""
        if not tracker.unfinished:
            return
        m, limits = strategy.num_recycled, tracker.limits
        check_every = (CHECK_EVERY if tracker.may_stop else CHECK_EVERY_WITHOUT_STOPS)[self.model.device.type]
        # A row may stand at its limit, have m tokens drafted there, and the drafter's rows look one token further.
        key, session, step = self.take_session(strategy, sampler, len(prompts), max(limits) + m + 2)
        num_slots = session.text.tokens_BS.shape[1]
        furthest = max(len(prompt) for prompt in prompts)
        was_training = self.model.training
        self.model.eval()
        try:
            session.prefill(prompts, limits, min(self.bucketed(furthest + 2 * m + 2), num_slots))
            tracker.counts.num_backbone_passes += 1
            records = [session.record_5B]
            while True:
                # The one place where the host waits for the device.
                columns = torch.stack(records).tolist()
                furthest = max(columns[-1][0])
                first = min(tracker.num_written[row] for row in tracker.unfinished)
                tokens_BS = session.text.tokens_BS[:, first : furthest + m + 1].tolist()
                for record in columns:
                    yield from tracker.update(StepRecord(*record), tokens_BS, first)
                if not tracker.unfinished:
                    return
                for row in tracker.pop_stopped():
                    session.text.limit_B[row] = session.text.position_B[row]
                records = []
                for _ in range(min(check_every, tracker.fewest_steps)):
                    session.sampler.refill()
                    step(min(self.bucketed(furthest + 2 * m + 2), num_slots))
                    tracker.counts.num_backbone_passes += 1
                    records.append(session.record_5B if check_every == 1 else session.record_5B.clone())
                    furthest += m + 1
        finally:
            self.model.train(was_training)
            self.give_back(key, session, step)

    def take_session(
        self, strategy: Strategy, sampler: Sampler, batch: int, num_slots: int
    ) -> tuple[object, Session, Callable[[int], None]]:
        """A session and its step: on CUDA an idle one that fits, since its graphs exist."""
        num_slots += self.spare_slots
        if self.compiled:
            num_slots = self.model.config.context_length + MAX_RECYCLED + 2  # one shape for every length of text
        if self.use_graphs:
            num_slots = -(-num_slots // SLOTS_OF_GRAPHS) * SLOTS_OF_GRAPHS
        key = (strategy, sampler.config, batch, num_slots)
        if key in self._idle:
            session, graphed = self._idle.pop(key)
            session.sampler.take(sampler.generators)
            return key, session, graphed
        session = Session(self.model, strategy, sampler, batch, num_slots, self.backbone_states, self.recycle)
        return key, session, GraphedStep(session.step, session.state) if self.use_graphs else session.step

    def give_back(self, key: object, session: Session, step: Callable[[int], None]) -> None:
        """Keep a session that was taken, where it has graphs."""
        if isinstance(step, GraphedStep):
            self._idle[key] = session, step
            while len(self._idle) > self.max_idle:
                self._idle.popitem(last=False)

    def forget(self) -> None:
        """Drop all idle sessions and their graphs."""
        self._idle.clear()

    def bucketed(self, num_slots: int) -> int:
        """Slots that attention reads where it needs this many."""
        bucket = READ_BUCKETS[self.model.device.type]
        return -(-(num_slots + self.spare_slots) // bucket) * bucket

    def _track(
        self,
        prompts: Sequence[Sequence[int]],
        strategy: Strategy,
        max_new_tokens: int,
        counts: Counts,
        stop_tokens: Sequence[int],
        stop_strings: StopStrings | None,
    ) -> OutputTracker:
        """Check what was asked for."""
        context, vocabulary = self.model.config.context_length, self.model.config.vocab_size
        problems = []
        for row, prompt in enumerate(prompts):
            if not len(prompt):
                problems.append(f"prompt {row}: it is empty; begin with the tokenizer's end token")
            elif len(prompt) > context:
                problems.append(f"prompt {row}: {len(prompt)} tokens, but the context holds {context}; shorten it")
            elif not 0 <= min(prompt) <= max(prompt) < vocabulary:
                problems.append(
                    f"prompt {row}: token {max(prompt)} is outside the vocabulary of {vocabulary}; use the tokenizer "
                    "the model was trained with"
                )
        if max_new_tokens < 0:
            problems.append(f"max_new_tokens: {max_new_tokens} is negative")
        if strategy.needs_module and self.model.recyclable is None:
            problems.append(
                f"decoding.strategy: {strategy.name} needs a recyclable module and this model has none "
                "(recycle.num_layers=0); use autoregressive, or decoding.drafter=ngram"
            )
        most = self.model.recycle_config.num_drafted
        if strategy.needs_module and most is not None and strategy.num_recycled > most:
            problems.append(f"decoding.num_recycled: {strategy.num_recycled}, but this module drafts at most {most}")
        if problems:
            raise ConfigError(problems)
        return OutputTracker(prompts, max_new_tokens, context, strategy, counts, stop_tokens, stop_strings)


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
    confidence_threshold: float = 0.0,
    stop_strings: StopStrings | None = None,
) -> Generation:
    """Continue prompts with a strategy, given by name or as an object. For repeated calls keep a `Decoder.optimised`.

    Args:
        model: on its device.
        prompts: token ids, one list a row; rows may differ in length.
        max_new_tokens: most tokens to add to each.
        strategy: `autoregressive`, `alternating` (the paper's) or `verified` (lossless).
        num_recycled: tokens drafted per backbone pass, where the strategy is a name.
        sampling: greedy if None.
        stop_tokens: a row ends with the first of these.
        seed: row b draws from a generator seeded `seed + b`.
        dtype: of the weights while decoding; None for the model's own; int8 for int8 weights, on a CPU.
        confidence_threshold: draft only while the module's largest probability is above this, where it is a name.
        stop_strings: a row also ends with the token that completes one of these.

    Raises:
        ConfigError: naming everything that cannot work.
    """
    if isinstance(strategy, str):
        strategy = make_strategy(strategy, num_recycled, confidence_threshold)
    decoder = Decoder.optimised(model, dtype)
    return decoder.generate(prompts, strategy, max_new_tokens, sampling, stop_tokens, seed, stop_strings=stop_strings)
