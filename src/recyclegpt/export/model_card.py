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

from recyclegpt.reporting.run_folders import UNREADABLE, flatten, number, read_json_object

PAPER = "https://arxiv.org/abs/2308.03421"
KINDS = {
    "recyclegpt": ("recyclegpt", "backbone and recyclable module, for the package `recyclegpt` and for `transformers`"),
    "llama": ("transformers", "the backbone alone, in the layout of its Hugging Face family, without the module"),
    "module": ("recyclegpt", "the recyclable module alone, for the backbone that it was trained on"),
    "vllm": ("vllm", "the recyclable module alone, as a draft model for vLLM (`EagleMistralForCausalLM`)"),
    "eagle": ("vllm", "the recyclable module alone, as an EAGLE-1 draft model (`EagleLlamaForCausalLM`)"),
}
"""Format: the library that loads it, and what the folder holds."""
QUALITY = {
    "val/ppl_backbone": "perplexity of the backbone",
    "val/ppl_recycle": "perplexity of the module, one token further",
    "val/ppl_alternating": "perplexity of alternating decoding, half of the tokens from each",
    "val/bits_per_byte": "bits per byte of the backbone",
    "val/agreement": "agreement of the module with the backbone",
}
SPEED = {
    "decode/tokens_per_s_autoregressive": "autoregressive, tokens/s",
    "decode/speedup_alternating": "alternating over autoregressive",
    "decode/ceiling_alternating": "its ceiling, from the measured cost of the passes",
    "decode/ceiling_bytes": "its ceiling by bytes read, which binds where decoding is memory-bound",
    "decode/speedup_verified": "verified over autoregressive",
    "decode/ceiling_verified": "its ceiling, from the measured cost of the passes",
    "decode/acceptance": "acceptance rate of verified decoding",
    "decode/mean_accepted_length": "mean accepted length of verified decoding",
    **{f"decode/acceptance_by_position/{k}": f"acceptance rate of drafted token {k} of a step" for k in range(1, 9)},
    "decode/nll_autoregressive": "backbone's nats per token of autoregressive text",
    "decode/nll_alternating": "backbone's nats per token of alternating text",
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
    """Tokens recycled per pass while speeds were measured."""
    data: Mapping[str, Any]
    """The config of the training data."""
    usage: str


def model_card(facts: CardFacts, result_file: Path, provenance_file: Path) -> str:
    """Markdown with YAML front matter, from `result.json` and `provenance.json` where they can be read."""
    result, provenance = _read(result_file), _read(provenance_file)
    library, content = KINDS[facts.kind]
    has_module = facts.depth > 0 and facts.kind != "llama"
    tags = ["recyclegpt", "text-generation", *(["speculative-decoding"] if has_module else [])]
    front = {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    size = f"{facts.num_parameters:,} parameters in training"
    if facts.depth:
        size += f", {facts.num_parameters_recycle:,} of them the recyclable module of depth {facts.depth}"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {facts.title}",
        f"A language model trained to recycle states it has already computed ([RecycleGPT]({PAPER})).\n"
        f"This folder holds {content}. {size}.",
        f"## Use\n\n```\n{facts.usage}\n```",
        *_measured(facts, result, has_module),
        _training(facts, result, provenance),
    ]
    if has_module:
        parts.append(_limits(facts))
    return "\n\n".join(parts) + "\n"


def _measured(facts: CardFacts, result: Mapping[str, Any], has_module: bool) -> list[str]:
    """Quality and speed, if the run measured them on these weights."""
    metrics, hardware = result.get("metrics", {}), result.get("hardware", {})
    if not metrics:
        return ["## Measured\n\nThe run left no numbers."]
    if (steps := result.get("train", {}).get("steps")) != facts.step:
        return [f"## Measured\n\nNothing: these weights are from step {facts.step:,}, the run's numbers from {steps}."]
    where = [f"{hardware[key]}" for key in ("device", "decode_dtype") if hardware.get(key) is not None]
    where += [f"{hardware['threads']} threads"] if hardware.get("threads") is not None else []
    how = [f"{facts.num_recycled} recycled per pass"] if facts.num_recycled else []
    how += [f"drafter {hardware['decode_drafter']}"] if hardware.get("decode_drafter") is not None else []
    note = f"Measured with {', '.join(['batch 1', *how, *where])}. Other machines differ."
    if hardware.get("contended"):
        note += " Other programs used the processors meanwhile: do not trust these speeds."
    own = QUALITY if has_module else {tag: words for tag, words in QUALITY.items() if words.endswith("of the backbone")}
    parts = []
    for heading, names in (("## Held-out quality", own), (f"## Speed\n\n{note}", SPEED if has_module else {})):
        rows = [f"| {names[tag]} | {value:.4g} |" for tag in names if (value := number(metrics.get(tag))) is not None]
        if rows:
            parts.append("\n".join([f"{heading}\n\n| | |\n|---|---|", *rows]))
    return parts


def _training(facts: CardFacts, result: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    lines = []
    argv = provenance.get("argv")
    if isinstance(argv, list) and len(argv) > 1:
        lines.append(f"- command: `recyclegpt {shlex.join(str(word) for word in argv[1:])}`")
    train, seed = result.get("train", {}), result.get("seed")
    tokens, seconds = number(train.get("tokens")), number(train.get("seconds"))
    length = f"{facts.step:,} steps"
    if tokens is not None and train.get("steps") == facts.step:
        length = f"{tokens:,} tokens in {length}" + ("" if seconds is None else f", {seconds:,.0f} s")
    lines.append(f"- {length}")
    # Which text: the source, and the keys that name it.
    data = {key: value for key, value in flatten(facts.data) if value is not None}
    if data:
        source = str(data.get("_target_", "unknown")).rpartition(".")[2]
        named = [f"{key} {data[key]}" for key in ("name", "path", "paths", "split") if key in data]
        lines.append(f"- data: {source}" + (f" ({', '.join(named)})" if named else ""))
    lines += [f"- seed: {seed}, one run; differences from other models may be chance"] if isinstance(seed, int) else []
    return "## Training\n\n" + "\n".join(lines)


def _limits(facts: CardFacts) -> str:
    lines = [
        "- Alternating decoding is not exact: half or more of its tokens come from the module, unchecked.",
        "- Verified decoding writes what the backbone alone would have written, or a sample of the same distribution. "
        "In bf16 and fp16 a tie between two tokens may be broken differently.",
        "- Alternating decoding with one recycled token gains at most `2 / (rho + c)`: the costs of a two-token "
        "backbone pass and of a module call, each over that of a one-token backbone pass. Where decoding is "
        "compute-bound (large batches) that is little or nothing.",
    ]
    if facts.kind == "eagle":
        lines.append(
            "- No engine has served a draft of this kind yet: its loader's arithmetic, taken from the source, was "
            "recomputed from such a folder and agrees with the module."
        )
    return "## Limits\n\n" + "\n".join(lines)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return read_json_object(path)
    except UNREADABLE:
        return {}
