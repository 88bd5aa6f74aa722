"""Rotary parameters of a `config.json`: `rope_theta` and `rope_scaling` of `transformers` 4, `rope_parameters` of 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from recyclegpt.errors import ConfigError
from recyclegpt.models.rope import RopeScaling

SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn")


def read_rope(values: Mapping[str, Any], context_length: int) -> tuple[float, RopeScaling]:
    """Base of the frequencies and their scaling; `context_length` is the config's `max_position_embeddings`.

    Dynamic scaling changes nothing up to that length, the longest text of this project's models.

    Raises:
        ConfigError: the kind is not supported, a number is missing or impossible, or the two spellings differ.
    """
    if values.get("rope_parameters") and values.get("rope_scaling"):
        new, old = ({**values, dropped: None} for dropped in ("rope_scaling", "rope_parameters"))
        if (found := read_rope(new, context_length)) != read_rope(old, context_length):
            raise ConfigError("rope_parameters and rope_scaling contradict each other; remove one of them")
        return found
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in given.values()):
        raise ConfigError("rope_parameters differ by layer, which is not supported")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in SUPPORTED:
        raise ConfigError(f"rope_type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}")
    if any(source.get("partial_rotary_factor", 1.0) not in (1.0, None) for source in (given, values)):
        raise ConfigError("partial_rotary_factor is not supported; every pair of a head is rotated here")
    theta = float(given.get("rope_theta", values.get("rope_theta", 10_000.0)))
    if kind in ("default", "dynamic"):
        return theta, RopeScaling()
    original = values.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    numbers: dict[str, Any] = {}
    try:
        factor = float(given["factor"])
        if kind != "linear":
            numbers["original_context"] = int(original or context_length)
        if kind == "llama3":
            numbers |= {key: float(given[key]) for key in ("low_freq_factor", "high_freq_factor")}
        if kind == "yarn":
            numbers |= {
                "beta_fast": float(given.get("beta_fast") or 32),
                "beta_slow": float(given.get("beta_slow") or 1),
            }
            numbers |= {"attention_factor": _attention_factor(given, factor), "truncate": given.get("truncate", True)}
    except KeyError as error:
        raise ConfigError(f"{error.args[0]} of {kind} rotary scaling is missing") from error
    return theta, RopeScaling(kind, factor, **numbers)


def write_rope(theta: float, scaling: RopeScaling) -> dict[str, Any]:
    """The rotary keys of a `config.json`, readable by both versions of `transformers`."""
    if scaling.kind == "none":
        parameters: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
        return {"rope_theta": theta, "rope_scaling": None, "rope_parameters": parameters}
    old: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        old["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        old |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        old |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        old |= {"attention_factor": scaling.attention_factor, "truncate": scaling.truncate}
    return {"rope_theta": theta, "rope_scaling": old, "rope_parameters": {"rope_theta": theta, **old}}


def _attention_factor(given: Mapping[str, Any], factor: float) -> float:
    """YaRN's factor of cosines and sines; by default 0.1 ln(factor) + 1 (arXiv 2309.00071, section 3.4)."""

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    if given.get("mscale") and given.get("mscale_all_dim"):
        return of(given["mscale"]) / of(given["mscale_all_dim"])
    return of(1.0)
