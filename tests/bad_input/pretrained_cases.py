"""Checkpoints in Hugging Face layout, what is exported from them, and what benchmarks read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .case import Cases
from .place import SETTINGS, TEXT, Place

CASES = Cases("pretrained")
QUICK = tuple(setting for setting in SETTINGS if not setting.startswith(("debug", "data.tokenizer")))
ADAPT = ("adapt", "model.path=pretrained", "debug=smoke_pretrained", *TEXT, *QUICK)
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
Weights = dict[str, torch.Tensor]


def _config(name: str, change: Callable[[Any], Any], *words: str) -> None:
    @CASES.refused(name, "pretrained/config.json", *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus", "pretrained")
        place.change_json("pretrained/config.json", change)
        return ADAPT


def _weights(name: str, change: Callable[[Weights], Any], *words: str) -> None:
    @CASES.refused(name, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus", "pretrained")
        path = place.root / "pretrained" / WEIGHTS
        tensors = load_file(path)
        change(tensors)
        path.unlink()
        save_file(tensors, path)
        return ADAPT


def _files(name: str, change: Callable[[Place, Path], Any], *words: str) -> None:
    @CASES.refused(name, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus", "pretrained")
        change(place, place.root / "pretrained" / WEIGHTS)
        return ADAPT


_config(
    "an architecture that is not supported", lambda c: {**c, "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"
)
_config("a config that is a list", lambda c: [c], "list")
_config("no width", lambda c: c.pop("hidden_size") and None, "hidden_size is missing")
_config("a width that is a text", lambda c: {**c, "hidden_size": "wide"}, "hidden_size is 'wide'")
_config("another activation", lambda c: {**c, "hidden_act": "gelu"}, "hidden_act 'gelu'")
_config("quantised weights", lambda c: {**c, "quantization_config": {"bits": 4}}, "quantised")
_config(
    "rotary scaling that is not supported",
    lambda c: {**c, "rope_parameters": {"rope_type": "longrope", "factor": 4.0}},
    "longrope",
)
_config(
    "rotary scaling without its factor", lambda c: {**c, "rope_parameters": {"rope_type": "linear"}}, "factor of linear"
)
_weights("a tensor is missing", lambda w: w.pop("model.norm.weight"), "model.norm.weight is missing")
_weights("a tensor of a part that is not there", lambda w: w.update(extra=torch.zeros(2)), "extra is not part")
_weights(
    "a tensor of another shape",
    lambda w: w.update({"model.norm.weight": torch.zeros(3)}),
    "model.norm.weight is [3]",
)
_weights("a weight that is not a number", lambda w: w["model.norm.weight"].fill_(float("nan")), "is not finite")
_files("weights cut short", lambda _, path: path.write_bytes(path.read_bytes()[:300]), "cannot be read")
_files("no weights", lambda _, path: path.unlink(), "holds neither")
_files(
    "pickled weights",
    lambda place, path: (path.unlink(), place.write("pretrained/pytorch_model.bin", b"")),
    "is a pickle",
)
_files(
    "an index that leads outside of the folder",
    lambda place, _: place.write_json(f"pretrained/{INDEX}", {"weight_map": {"a": "../run/a.safetensors"}}),
    "not a file of this folder",
)
_files(
    "an index that names a file that is missing",
    lambda place, _: place.write_json(f"pretrained/{INDEX}", {"weight_map": {"a": "a.safetensors"}}),
    "a.safetensors: missing",
)
_files(
    "no tokenizer", lambda place, _: (place.root / "pretrained/tokenizer.json").unlink(), "tokenizer.json", "not exist"
)


@CASES.refused("no such folder", "model.path", "./nowhere does not exist")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    return [word.replace("model.path=pretrained", "model.path=./nowhere") for word in ADAPT]


@CASES.refused("another tokenizer than the backbone's", "data.tokenizer.kind", "its own tokens")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "pretrained")
    return [*ADAPT, "data.tokenizer.kind=byte"]


@CASES.refused("rows longer than the checkpoint's context", "model.context_length", "999")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "pretrained")
    return [*ADAPT, "model.context_length=999"]


@CASES.refused("export: an unknown format", "format", "use llama")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    return ["export", "checkpoint=run", "format=lama", "out=out"]


@CASES.refused("export: onto a folder of something else", "out", "corpus")
def _(place: Place) -> Sequence[str]:
    place.copy("run", "corpus")
    return ["export", "checkpoint=run", "out=corpus", "overwrite=true"]


@CASES.refused("export: a draft without a module", "recyclable module", "format=llama")
def _(place: Place) -> Sequence[str]:
    place.copy("pretrained")
    return ["export", "checkpoint=pretrained", "format=vllm", "out=out"]


@CASES.refused("bulk: the decoder whose text is not the backbone's", "decoding.strategy", "alternating")
def _(place: Place) -> Sequence[str]:
    place.copy("run", "corpus")
    return ["generate", "checkpoint=run", "bulk.out=out", "decoding.strategy=alternating"]


@CASES.refused("evaluate: an unknown task", "no_such_task")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    return ["evaluate", "checkpoint=run", "tasks=[no_such_task]"]


@CASES.refused("bench: a line of a prompt set that is not JSON", "prompts.jsonl:2")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    place.write("prompts.jsonl", '{"category": "a", "prompt": "def"}\n{"category": "a", \n')
    return ["bench", "checkpoint=run", "prompts=prompts.jsonl"]
