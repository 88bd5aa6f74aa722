"""All cases, by category."""

from __future__ import annotations

from . import checkpoint_cases, command_cases, config_cases, data_cases, pretrained_cases, shard_cases, tokenizer_cases
from .case import Case

CASES: tuple[Case, ...] = (
    *checkpoint_cases.CASES,
    *config_cases.CASES,
    *data_cases.CASES,
    *shard_cases.CASES,
    *tokenizer_cases.CASES,
    *command_cases.CASES,
    *command_cases.REPORTS,
    *pretrained_cases.CASES,
)
