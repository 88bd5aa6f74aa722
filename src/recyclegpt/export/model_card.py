"""The card of an exported model: what it is, how to use it, and the numbers its run measured, with their limits.

A number that was not measured is left out; nothing is estimated here.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recyclegpt.reporting.plain_values import UNREADABLE, flatten, number, read_json_object

PAPER = "https://arxiv.org/abs/2308.03421"

KINDS = {
    "recyclegpt": ("recyclegpt", "backbone and recyclable module, for the package `recyclegpt` and for `transformers`"),
    "llama": ("transformers", "the backbone alone, in the layout of its Hugging Face family; the module is left out"),
    "vllm": ("vllm", "the recyclable module alone, as a draft model for vLLM (`EagleMistralForCausalLM`)"),
    "eagle": ("vllm", "the recyclable module alone, as an EAGLE-1 draft model (`EagleLlamaForCausalLM`)"),
}
"""Format: the library that loads it, and what the folder holds."""

QUALITY = {
    "val/ppl_backbone": "perplexity of the backbone",
    "val/ppl_recycle": "perplexity of the module, one token further",
    "val/ppl_alternating": "perplexity of alternating decoding, half of the tokens from each",
    "val/bits_per_byte": "bits per byte of the backbone",
    "val/agreement": "share of recycled tokens that equal the backbone's own",
}
SPEED = {
    "decode/tokens_per_s_autoregressive": "autoregressive, tokens/s",
    "decode/speedup_alternating": "alternating over autoregressive",
    "decode/ceiling_alternating": "its ceiling, from the measured cost of the passes",
    "decode/ceiling_bytes": "its ceiling by bytes read, which binds where decoding is memory-bound",
    "decode/speedup_verified": "verified over autoregressive",
    "decode/ceiling_verified": "its ceiling, from the measured cost of the passes",
    "decode/acceptance": "share of recycled tokens that verified decoding kept",
    "decode/nll_autoregressive": "nats a token of autoregressive text, as the backbone judges it",
    "decode/nll_alternating": "nats a token of alternating text, as the backbone judges it",
}


@dataclass(frozen=True)
class CardFacts:
    """What is known of an export without its run's files."""

    title: str
    kind: str
    """The format, one of `KINDS`."""
    step: int
    """Of the checkpoint."""
    depth: int
    num_parameters: int
    num_parameters_recycle: int
    num_recycled: int | None
    """Tokens recycled a pass while speeds were measured."""
    data: Mapping[str, Any]
    """The config of the training data."""
    usage: str

    @property
    def recycles(self) -> bool:
        """Whether what is exported holds a module."""
        return self.depth > 0 and self.kind != "llama"


def model_card(facts: CardFacts, result_file: Path, provenance_file: Path) -> str:
    """Markdown with YAML front matter, from `result.json` and `provenance.json` where they can be read."""
    result, provenance = _read(result_file), _read(provenance_file)
    library, holds = KINDS[facts.kind]
    front = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["recyclegpt", "text-generation", *(["speculative-decoding"] if facts.recycles else [])],
    }
    size = f"{facts.num_parameters:,} parameters in training"
    if facts.depth:
        size += f", {facts.num_parameters_recycle:,} of them the recyclable module of depth {facts.depth}"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {facts.title}",
        f"A language model that was trained to recycle states it has already computed ([RecycleGPT]({PAPER})).\n"
        f"This folder holds {holds}. {size}.",
        f"## Use\n\n```\n{facts.usage}\n```",
        *_measured(facts, result),
        _training(facts, result, provenance),
        _limits(facts, result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _measured(facts: CardFacts, result: Mapping[str, Any]) -> list[str]:
    """Quality and speed, where the run measured them on these weights."""
    metrics, train = _section(result, "metrics"), _section(result, "train")
    if not metrics:
        return ["## Measured\n\nThe run left no numbers."]
    if train.get("steps") != facts.step:
        return [
            f"## Measured\n\nNothing was measured on these weights, which are those after {facts.step:,} steps; the "
            f"run's numbers are of its end, after {train.get('steps')} steps."
        ]
    parts = []
    if rows := _rows(metrics, QUALITY, facts):
        parts.append(f"## Held-out quality\n\n| | |\n|---|---|\n{rows}")
    hardware = _section(result, "hardware")
    if facts.recycles and (rows := _rows(metrics, SPEED, facts)):
        where = [
            str(hardware[key]) + suffix
            for key, suffix in (("device", ""), ("decode_dtype", ""), ("threads", " threads"))
            if hardware.get(key) is not None
        ]
        how = ["batch 1", f"{facts.num_recycled} recycled a pass" if facts.num_recycled else "", *where]
        note = f"Measured with {', '.join(word for word in how if word)}."
        if hardware.get("contended"):
            note += " Other programs used the processors meanwhile, so these speeds are not to be trusted."
        parts.append(f"## Speed\n\n{note} Other machines differ.\n\n| | |\n|---|---|\n{rows}")
    return parts


def _training(facts: CardFacts, result: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    lines = []
    argv = provenance.get("argv")
    if isinstance(argv, list) and len(argv) > 1:
        lines.append(f"- command: `recyclegpt {shlex.join(str(word) for word in argv[1:])}`")
    train = _section(result, "train")
    tokens, seconds = number(train.get("tokens")), number(train.get("seconds"))
    if tokens is not None and train.get("steps") == facts.step:
        lines.append(
            f"- {tokens:,} tokens in {facts.step:,} steps" + ("" if seconds is None else f", {seconds:,.0f} s")
        )
    else:
        lines.append(f"- {facts.step:,} steps")
    lines += [f"- data: {_data(facts.data)}"] if facts.data else []
    seed = result.get("seed")
    lines += [f"- seed: {seed}, one run"] if isinstance(seed, int) else []
    versions = _section(provenance, "versions")
    known = [f"{name} {versions[name]}" for name in ("recyclegpt", "torch") if versions.get(name)]
    lines += [f"- versions: {', '.join(known)}"] if known else []
    return "## Training\n\n" + "\n".join(lines)


def _limits(facts: CardFacts, result: Mapping[str, Any]) -> str:
    if not facts.recycles:
        return ""
    lines = [
        "- Alternating decoding is not exact: half or more of its tokens are the module's, unchecked.",
        "- Verified decoding writes what the backbone alone would have written, or a sample of the same distribution. "
        "In bf16 and fp16 a tie between two tokens may fall differently.",
        "- Alternating decoding with one recycled token gains at most `2 / (rho + c)`: the costs of a two-token "
        "backbone pass and of a module call over that of a one-token pass. Where decoding is bound by arithmetic "
        "(large batches) that is little or nothing.",
    ]
    if facts.kind in ("vllm", "eagle"):
        lines.append(
            "- The serving engine was not run: its loader's arithmetic, read from its source, was recomputed from "
            "such a folder and agrees with the module."
        )
    if isinstance(result.get("seed"), int):
        lines.append("- One seed: differences to other models may be chance.")
    return "## Limits\n\n" + "\n".join(lines)


def _rows(metrics: Mapping[str, Any], names: Mapping[str, str], facts: CardFacts) -> str:
    rows = []
    for name, words in names.items():
        value = number(metrics.get(name))
        if value is not None and (facts.recycles or words.endswith("of the backbone")):
            rows.append(f"| {words} | {value:.4g} |")
    return "\n".join(rows)


def _data(settings: Mapping[str, Any]) -> str:
    """Which text: the source, and the keys that name it."""
    named = {key: value for key, value in flatten(settings) if key in ("_target_", "name", "path", "paths", "split")}
    source = str(named.pop("_target_", "unknown")).rpartition(".")[2]
    details = ", ".join(f"{key} {value}" for key, value in named.items() if value is not None)
    return f"{source}{f' ({details})' if details else ''}"


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    return section if isinstance(section, Mapping) else {}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return read_json_object(path)
    except UNREADABLE:
        return {}
