"""Arguments of the other commands, pretrained folders, and run folders that a report reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safetensors.torch import load_file, save_file

from .place import CORPUS, DONE, MARKER, Case, Place

GENERATE = ("generate", "checkpoint=run", "--prompt", "def")
ADAPT = (
    *("adapt", "model.path=pretrained", "debug=smoke_pretrained", "data=text_files", f"data.paths=[{CORPUS}]"),
    "callbacks=no_monitor",
)
CONFIG, WEIGHTS = "pretrained/config.json", "pretrained/model.safetensors"


def _pretrained(name: str, prepare: Callable[[Place], Any], *words: str) -> Case:
    return Case(name, ADAPT, words, ["pretrained"], prepare)


def _lose_a_tensor(place: Place) -> None:
    tensors = load_file(place.root / WEIGHTS)
    tensors.pop("model.norm.weight")
    (place.root / WEIGHTS).unlink()
    save_file(tensors, place.root / WEIGHTS)


def _pickled_weights(place: Place) -> None:
    (place.root / WEIGHTS).unlink()
    place.write("pretrained/pytorch_model.bin", b"")


def _report(name: str, file: str, content: str) -> Case:
    argv = ("report", "run", "output_dir=report")
    return Case(name, argv, [file], ["run"], lambda place: place.write(f"run/{file}", content), DONE)


CASES = [
    Case("an unknown command", ("trian",), ["trian"]),
    Case("a prompt longer than the context", ("generate", "checkpoint=run", "--prompt", "x " * 300), ["64"], ["run"]),
    Case("an unknown strategy", (*GENERATE, "decoding.strategy=magic"), ["decoding.strategy"], ["run"]),
    Case("a negative temperature", (*GENERATE, "decoding.temperature=-1"), ["decoding.temperature"], ["run"]),
    Case(
        "a prompt file that is not UTF-8",
        ("generate", "checkpoint=run", "--prompt-file", "bad.txt"),
        ["bad.txt"],
        ["run"],
        lambda place: place.write("bad.txt", b"caf\xe9"),
    ),
    Case(
        "a prompt set that is not JSON",
        ("bench", "checkpoint=run", "prompts=prompts.jsonl"),
        ["prompts.jsonl:2"],
        ["run"],
        lambda place: place.write("prompts.jsonl", '{"category": "a", "prompt": "def"}\n{"category": "a", \n'),
    ),
    Case(
        "an export onto a folder of something else",
        ("export", "checkpoint=run", "output_dir=corpus", "overwrite=true"),
        ["corpus"],
        ["run", "corpus"],
    ),
    # Pretrained folders
    Case("a pretrained folder that does not exist", (*ADAPT, "model.path=./nowhere"), ["model.path", "./nowhere"]),
    _pretrained(
        "an architecture that is not supported",
        lambda place: place.change_json(CONFIG, lambda config: config.update(architectures=["MambaForCausalLM"])),
        CONFIG,
    ),
    _pretrained("a pretrained tensor is missing", _lose_a_tensor, "model.norm.weight"),
    _pretrained("pickled pretrained weights", _pickled_weights, "pretrained"),
    _pretrained(
        "an index that leads outside of the folder",
        lambda place: place.write(f"{WEIGHTS}.index.json", '{"weight_map": {"a": "../run/a.safetensors"}}'),
        "../run/a.safetensors",
    ),
    # Reports: the file is named, the rest is written
    _report("a result that is not JSON", "result.json", "{"),
    _report(
        "a config with a Python object",
        ".hydra/config.yaml",
        f"a: !!python/object/apply:os.system ['touch {MARKER}']\n",
    ),
]
