"""How text is generated: sampling, the three strategies, and the loop they share."""

from recyclegpt.decoding.decoder import Decoder, generate
from recyclegpt.decoding.generation import Counts, Emitted, Generation
from recyclegpt.decoding.sampling import Sampler, SamplingConfig, processed_probabilities
from recyclegpt.decoding.strategies import Alternating, Autoregressive, Strategy, Verified, make_strategy

__all__ = [
    "Alternating",
    "Autoregressive",
    "Counts",
    "Decoder",
    "Emitted",
    "Generation",
    "Sampler",
    "SamplingConfig",
    "Strategy",
    "Verified",
    "generate",
    "make_strategy",
    "processed_probabilities",
]
