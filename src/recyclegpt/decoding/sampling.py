"""From logits to a token: penalty, temperature, filters, and draws that do not depend on the other rows of a batch.

B batch, V vocabulary, D draft vocabulary, m drafted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recyclegpt import kernels
from recyclegpt.errors import ConfigError

MIN_TEMPERATURE = 1e-4
"""Below it, logits divided by the temperature overflow; what is sampled there is greedy anyway."""


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is chosen from logits. Penalty first, then the filters in the order of the fields, as `transformers`.

    Raises:
        ConfigError: naming every field out of range.
    """

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Keep the k most likely tokens; null keeps all."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities reach this sum; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one (arXiv 2407.01082); 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divide the positive and multiply the negative logits of tokens that stand in prompt or text by this (CTRL, arXiv
    1909.05858); 1 leaves them. Greedy decoding obeys it too."""
    coupled: bool = True
    """Draw a token with noise that depends on seed and position alone, so that verified text equals autoregressive text
    token for token (coupled sampling: Daliri, Musco, Suresh, arXiv 2408.07978). False: rejection sampling, whose text
    has the same distribution."""

    def __post_init__(self) -> None:
        valid = {
            f"temperature: {self.temperature} is neither 0 (greedy) nor a number from {MIN_TEMPERATURE} on": (
                self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < float("inf")
            ),
            f"top_k: {self.top_k} keeps no token; use null to keep all": self.top_k is None or self.top_k > 0,
            f"top_p: {self.top_p} is not in (0, 1]; use 1 to keep all": 0 < self.top_p <= 1,
            f"min_p: {self.min_p} is not in [0, 1); use 0 to keep all": 0 <= self.min_p < 1,
            f"repetition_penalty: {self.repetition_penalty} is not positive; use 1 for none": (
                0 < self.repetition_penalty < float("inf")
            ),
        }
        if problems := [problem for problem, holds in valid.items() if not holds]:
            raise ConfigError(problems)

    @property
    def greedy(self) -> bool:
        """Whether no random number is used."""
        return self.temperature == 0

    @property
    def is_argmax(self) -> bool:
        """Whether it takes the largest of the logits as they are."""
        return self.greedy and not self.penalises

    @property
    def penalises(self) -> bool:
        """Whether a choice depends on which tokens the text holds."""
        return self.repetition_penalty != 1


def most_likely(logits: Tensor) -> Tensor:
    """Index of the largest, the first of equals, `(...)`."""
    if logits.device.type == "cpu" and logits.dtype in kernels.DTYPES and kernels.are_loaded():
        return kernels.most_likely(logits.reshape(-1, logits.shape[-1])).view(logits.shape[:-1])
    return logits.max(dim=-1).indices  # `argmax` takes four times as long on a CPU in bf16


def exponential_noise(keys: Tensor, ids_V: Tensor) -> Tensor:
    """Exponential noise `(..., V)` in fp32 of these token ids, each a hash of an id and two 32-bit keys `(..., 2)`."""
    if keys.device.type == "cpu" and kernels.are_loaded():
        return kernels.exponential_noise(keys.reshape(-1, 2), ids_V).view(*keys.shape[:-1], len(ids_V))
    first, second = keys[..., :1], keys[..., 1:]
    words = _mix((_mix(ids_V ^ first) + second) & _WORD)
    # Below 1, whose noise would be infinite: of a token that is certain, no weight would be left.
    uniform = ((words + 0.5) * 2.0**-32).to(torch.float32).clamp(max=1 - 2.0**-24)
    return -torch.log1p(-uniform)


_WORD = 2**32 - 1


def _mix(x: Tensor) -> Tensor:
    """lowbias32 (nullprogram.com/blog/2018/07/31) of 32-bit words in int64: each bit depends on each of `x`."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def penalised(logits: Tensor, config: SamplingConfig, seen: Tensor | None) -> Tensor:
    """Logits `(..., V)` after the repetition penalty on the tokens that `seen` `(..., V)` marks; None marks none."""
    if seen is None or not config.penalises:
        return logits
    penalty = config.repetition_penalty
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def processed_probabilities(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """Probabilities `(..., V)` that a token is drawn from: fp32 (fp64 for fp64 logits), after penalty and filters.

    Greedy choice has no distribution.
    """
    weights = _kept_weights(logits, config, seen)
    return weights / weights.sum(dim=-1, keepdim=True) if config.top_p < 1 or config.min_p > 0 else weights


def _kept_weights(logits: Tensor, config: SamplingConfig, seen: Tensor | None) -> Tensor:
    """The same up to a factor a row, and bit for bit whatever rows are beside it.

    A sum is not: with several threads torch cuts that of one long row, but not those of two.
    """
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    logits = penalised(logits, config, seen) / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        threshold = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if config.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # A token goes when those before it already reach top_p; the first always stays.
        beyond = ordered.cumsum(dim=-1) - ordered >= config.top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(beyond, 0))
    if config.min_p > 0:
        least = config.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    return probabilities


def largest_probability(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """Confidence, `(...)`: the largest probability after penalty and filters; at temperature 1 if greedy."""
    if not config.greedy:
        return processed_probabilities(logits, config, seen).amax(dim=-1)
    logits = penalised(logits.float(), config, seen)
    return (logits.amax(dim=-1) - logits.logsumexp(dim=-1)).exp()


class Sampler:
    """Draws for the rows of one batch. Each row has its own generator, so a row's text is the same in any batch.

    Coupled sampling hashes the seed of a row's generator and the position of a token. Rejection sampling draws a step's
    numbers before the step, into tensors that stay in place: a step captured as a CUDA graph can read them, and how
    many are drawn does not depend on what is accepted.
    """

    def __init__(self, config: SamplingConfig, generators: Sequence[torch.Generator]) -> None:
        self.config = config
        self.generators = list(generators)
        self.seeds_B2 = torch.empty(0)
        self.ids_V = torch.empty(0)
        self.exponential_BNV = torch.empty(0)
        self.uniform_Bm = torch.empty(0)

    @classmethod
    def seeded(cls, config: SamplingConfig, batch: int, seed: int, device: torch.device) -> Sampler:
        """Row b draws from a generator seeded with `seed + b`."""
        return cls(config, [torch.Generator(device=device).manual_seed(seed + row) for row in range(batch)])

    @property
    def rejects(self) -> bool:
        """Whether verification compares distributions, and not tokens."""
        return not self.config.greedy and not self.config.coupled

    def allocate(self, num_recycled: int, vocab_size: int, device: torch.device) -> None:
        """Make room for a step's numbers: one token of the backbone and `num_recycled` of the drafter."""
        batch = len(self.generators)
        self.ids_V = torch.arange(vocab_size, device=device)
        self.seeds_B2 = torch.empty(batch, 2, dtype=torch.long, device=device)
        self.take(self.generators)
        if self.rejects:
            self.exponential_BNV = torch.empty(batch, num_recycled + 1, vocab_size, device=device)
            self.uniform_Bm = torch.empty(batch, num_recycled, device=device)

    def take(self, generators: Sequence[torch.Generator]) -> None:
        """Draw with these from now on; allocated tensors stay in place."""
        self.generators = list(generators)
        seeds = [generator.initial_seed() for generator in generators]
        low_B, high_B = torch.tensor([[seed & _WORD, seed >> 32 & _WORD] for seed in seeds]).unbind(1)
        # Both depend on the lower half: two rows whose first words are neighbours share no noise, one position apart.
        first_B, second_B = _mix(low_B), _mix((_mix(high_B ^ _WORD) + low_B) & _WORD)
        self.seeds_B2.copy_(torch.stack([first_B, second_B], dim=1))

    def refill(self) -> None:
        """Draw the next step's numbers."""
        if not self.rejects:
            return
        for exponential, uniform, generator in zip(self.exponential_BNV, self.uniform_Bm, self.generators, strict=True):
            exponential.exponential_(generator=generator)
            uniform.uniform_(generator=generator)

    def choose(
        self,
        logits_BV: Tensor,
        draw: int,
        position_B: Tensor,
        seen_BV: Tensor | None = None,
        draft_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """A token for each row, and under rejection sampling the distribution `(B, V)` it was drawn from.

        `draw` is 0 for the backbone's token of a step and k for the k-th drafted one; `position_B` is where it goes.
        With `draft_ids` logits and `seen_BV` are those of these D tokens.
        """
        if not self.rejects:
            seen_BTV = None if seen_BV is None else seen_BV[:, None]
            return self.choose_at(logits_BV[:, None], position_B[:, None], seen_BTV, draft_ids)[:, 0], None
        probabilities_BV = processed_probabilities(logits_BV, self.config, seen_BV)
        if draft_ids is not None:
            zeros_BV = probabilities_BV.new_zeros(len(probabilities_BV), len(self.ids_V))
            probabilities_BV = zeros_BV.index_copy_(1, draft_ids, probabilities_BV)
        return self.pick(probabilities_BV, draw), probabilities_BV

    def choose_at(
        self, logits_BTV: Tensor, positions_BT: Tensor, seen_BTV: Tensor | None, draft_ids: Tensor | None = None
    ) -> Tensor:
        """The tokens `(B, T)` of these positions, greedy or coupled; with `draft_ids` among these D."""
        if self.config.greedy:
            index_BT = most_likely(penalised(logits_BTV, self.config, seen_BTV))
        else:
            noise_BTV = exponential_noise(self.keys_at(positions_BT), self.ids_V if draft_ids is None else draft_ids)
            index_BT = most_likely(_kept_weights(logits_BTV, self.config, seen_BTV) / noise_BTV)
        return index_BT if draft_ids is None else draft_ids[index_BT]

    def keys_at(self, positions_BT: Tensor) -> Tensor:
        """Keys of the noise at these positions, `(B, T, 2)`."""
        first_BT = _mix((self.seeds_B2[:, :1] + positions_BT) & _WORD)
        return torch.stack([first_BT, _mix(self.seeds_B2[:, 1:] ^ first_BT)], dim=-1)

    def pick(self, weights_BV: Tensor, draw: int) -> Tensor:
        """A token for each row with probability proportional to its weight.

        The largest of weight / exponential noise is such a draw, and needs no synchronisation with the device.
        """
        return (weights_BV / self.exponential_BNV[:, draw]).argmax(dim=-1)
