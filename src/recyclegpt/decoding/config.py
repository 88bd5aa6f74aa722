"""One set of decoding settings for the monitor, `generate`, `generate-corpus`, `bench` and `evaluate`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch

from recyclegpt.decoding.sampling import SamplingConfig
from recyclegpt.decoding.strategies import Autoregressive, Strategy, make_strategy
from recyclegpt.errors import Problems
from recyclegpt.hardware.device import DECODING_DTYPES
from recyclegpt.models import RecycleGPT

_log = logging.getLogger("recyclegpt")


@dataclass
class DecodingConfig:
    """How text is decoded.

    Raises:
        ConfigError: naming every field that cannot be.
    """

    strategy: str = "verified"
    """`autoregressive`, `alternating` (the paper's, not exact) or `verified` (lossless)."""
    num_recycled: int = 1
    """Tokens drafted per backbone pass, 1 to 8; vLLM calls it `num_speculative_tokens`."""
    confidence_threshold: float = 0.0
    """Draft only while the product of the module's largest probabilities is above this: 0 always, 1 never."""
    adaptive: bool = False
    """Verified decoding on a CPU drafts as many of the `num_recycled` tokens as pay by measured costs."""
    drafter: str = "module"
    """`module`, `ngram+module`, or without a module `ngram`, `token_recycling`, `self_speculative` or `early_exit`;
    as in `Strategy`."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    coupled: bool = True
    """These five as in `SamplingConfig`."""
    max_new_tokens: int = 200
    stop: list[str] = field(default_factory=list)
    """Strings that end the text."""
    seed: int = 0
    """Row b of a batch draws from a generator seeded `seed + b`."""
    dtype: str = "auto"
    """Of the weights: `auto` is bfloat16 where the device has it natively, else float32; `int8` (CPU) means int8
    weights."""
    draft_dtype: str | None = None
    """Of the recyclable module's weights and its LM head: `int8` (CPU), or null for `dtype`."""
    compile: bool = False
    """Run the passes through `torch.compile`."""

    def __post_init__(self) -> None:
        problems = Problems()
        for check in (self.make_strategy, self.sampling):
            with problems.under():
                check()
        if self.max_new_tokens < 0:
            problems.found.append(f"max_new_tokens: {self.max_new_tokens} is negative")
        if not all(self.stop):
            problems.found.append("stop: an empty string would end every text at once; leave it out")
        if not 0 <= self.seed < 2**62:
            problems.found.append(f"seed: {self.seed} is not between 0 and 2^62")
        if self.dtype not in ("auto", *DECODING_DTYPES):
            problems.found.append(f"dtype: {self.dtype!r} is unknown; choose from auto, {', '.join(DECODING_DTYPES)}")
        if self.adaptive and self.temperature > 0 and not self.coupled:
            problems.found.append("adaptive: in rejection sampling the text would depend on timing; use coupled=true")
        if self.draft_dtype not in (None, "int8"):
            problems.found.append(
                f"draft_dtype: {self.draft_dtype!r} is unknown; choose int8, or null for that of dtype"
            )
        problems.raise_any()

    def make_strategy(self) -> Strategy:
        """The strategy of this name and these numbers."""
        return make_strategy(self.strategy, self.num_recycled, self.confidence_threshold, self.drafter, self.adaptive)

    def named_draft_dtype(self) -> torch.dtype | None:
        """For `Decoder.optimised`."""
        return None if self.draft_dtype is None else torch.int8

    def strategy_for(self, model: RecycleGPT) -> Strategy:
        """The strategy for this model: autoregressive, with a warning, where it has no module to draft with."""
        strategy = self.make_strategy()
        if strategy.needs_module and model.recyclable is None:
            _log.warning("the model has no recyclable module, so text is generated autoregressively")
            return Autoregressive()
        return strategy

    def sampling(self) -> SamplingConfig:
        """How a token is chosen from logits."""
        return SamplingConfig(
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, self.coupled
        )
