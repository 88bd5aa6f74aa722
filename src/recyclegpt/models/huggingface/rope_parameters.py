"""Rotary parameters of a `config.json`: `rope_theta` and `rope_scaling` of `transformers` 4, `rope_parameters` of 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from recyclegpt.errors import ConfigError
from recyclegpt.models.rope import RopeScaling

_THETA = 10_000.0
SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn")


class Rope(NamedTuple):
    """Base of the frequencies, and how they are scaled."""

    theta: float
    scaling: RopeScaling


def read_rope(values: Mapping[str, Any], context_length: int, where: str) -> Rope:
    """Rotary parameters of a config; `context_length` is its `max_position_embeddings`.

    Dynamic scaling changes nothing up to that length, the longest text of this project's models.

    Raises:
        ConfigError: the kind is not supported, a number is missing or impossible, or the two spellings differ.
    """
    if values.get("rope_parameters") and values.get("rope_scaling"):
        new, old = ({**values, dropped: None} for dropped in ("rope_scaling", "rope_parameters"))
        if (found := read_rope(new, context_length, where)) != read_rope(old, context_length, where):
            raise ConfigError(f"{where}: rope_parameters and rope_scaling contradict each other; remove one of them")
        return found
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise ConfigError(f"{where}: rope_parameters differ by layer, which is not supported")
    kind = str(given.get("rope_type", given.get("type", "default")))
    theta = given.get("rope_theta", values.get("rope_theta", _THETA))
    problems = []
    if kind not in SUPPORTED:
        problems.append(f"{where}: rope_type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}")
    if not is_number(theta) or not theta > 1:
        problems.append(f"{where}: rope_theta is {theta!r}, not a number above 1")
    if any(source.get("partial_rotary_factor", 1.0) not in (1.0, None) for source in (given, values)):
        problems.append(f"{where}: partial_rotary_factor is not supported; every pair of a head is rotated here")
    if problems:
        raise ConfigError(problems)
    if kind in ("default", "dynamic"):
        return Rope(float(theta), RopeScaling())
    numbers: dict[str, Any] = {"factor": given.get("factor")}
    if kind in ("llama3", "yarn"):
        own = values.get("original_max_position_embeddings")
        numbers["original_context"] = own or given.get("original_max_position_embeddings") or context_length
    if kind == "llama3":
        numbers |= {key: given.get(key) for key in ("low_freq_factor", "high_freq_factor")}
    if kind == "yarn":
        numbers |= {"beta_fast": given.get("beta_fast") or 32, "beta_slow": given.get("beta_slow") or 1}
    for key, value in numbers.items():
        if not is_number(value):
            problems.append(f"{where}: {key} of {kind} rotary scaling is {value!r}, not a number")
    if problems:
        raise ConfigError(problems)
    scaling: dict[str, Any] = {key: float(value) for key, value in numbers.items()}
    if "original_context" in scaling:
        scaling["original_context"] = int(scaling["original_context"])
    if kind == "yarn":
        scaling["attention_factor"] = _attention_factor(given, scaling["factor"])
        scaling["truncate"] = bool(given.get("truncate", True))
    try:
        return Rope(float(theta), RopeScaling(kind, **scaling))
    except ConfigError as error:
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from error


def write_rope(theta: float, scaling: RopeScaling) -> dict[str, Any]:
    """The rotary keys of a `config.json`, readable by both versions of `transformers`."""
    parameters: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if scaling.kind != "none":
        parameters |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        parameters["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        parameters |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        parameters |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        parameters |= {"attention_factor": scaling.attention_factor, "truncate": scaling.truncate}
    old = {key: value for key, value in parameters.items() if key != "rope_theta"} if scaling.kind != "none" else None
    return {"rope_theta": theta, "rope_scaling": old, "rope_parameters": parameters}


def _attention_factor(given: Mapping[str, Any], factor: float) -> float:
    """YaRN's factor of cosines and sines; by default 0.1 ln(factor) + 1 (arXiv 2309.00071, section 3.4)."""

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    if given.get("mscale") and given.get("mscale_all_dim"):
        return of(given["mscale"]) / of(given["mscale_all_dim"])
    return of(1.0)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
