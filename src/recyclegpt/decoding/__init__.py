"""How text is generated: sampling, the three strategies, and the engine they share."""

from recyclegpt.decoding.config import DecodingConfig
from recyclegpt.decoding.decoder import Decoder, generate
from recyclegpt.decoding.fuse import fuse
from recyclegpt.decoding.generation import Counts, Generation, NewTokens
from recyclegpt.decoding.sampling import Sampler, SamplingConfig, processed_probabilities
from recyclegpt.decoding.stop_strings import StopStrings, TextStreamer
from recyclegpt.decoding.strategies import (
    Alternating,
    Autoregressive,
    DraftTokens,
    Strategy,
    Verified,
    VerifyLogits,
    make_strategy,
)

__all__ = [
    "Alternating",
    "Autoregressive",
    "Counts",
    "Decoder",
    "DecodingConfig",
    "DraftTokens",
    "Generation",
    "NewTokens",
    "Sampler",
    "SamplingConfig",
    "StopStrings",
    "Strategy",
    "TextStreamer",
    "Verified",
    "VerifyLogits",
    "fuse",
    "generate",
    "make_strategy",
    "processed_probabilities",
]
