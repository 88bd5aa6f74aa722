"""How text is generated: sampling, the three strategies, and the engine they share."""

from recyclegpt.decoding.decoder import Decoder, generate
from recyclegpt.decoding.fuse import fuse
from recyclegpt.decoding.generation import Counts, Emitted, Generation
from recyclegpt.decoding.sampling import Sampler, SamplingConfig, processed_probabilities
from recyclegpt.decoding.stop_strings import PrintedText, StopStrings
from recyclegpt.decoding.strategies import (
    Alternating,
    Autoregressive,
    Proposals,
    Reading,
    Strategy,
    Verified,
    make_strategy,
)

__all__ = [
    "Alternating",
    "Autoregressive",
    "Counts",
    "Decoder",
    "Emitted",
    "Generation",
    "PrintedText",
    "Proposals",
    "Reading",
    "Sampler",
    "SamplingConfig",
    "StopStrings",
    "Strategy",
    "Verified",
    "fuse",
    "generate",
    "make_strategy",
    "processed_probabilities",
]
