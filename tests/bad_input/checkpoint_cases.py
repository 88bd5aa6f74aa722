"""Checkpoints and tokenizers that are damaged, foreign or malicious, and runs that cannot be resumed from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from recyclegpt.data import TextTokenizer
from tests.small_run import EVERY_STEP, KEEP_ALL, NEWEST, OLDER, SMALL

from .place import CORPUS, MARKER, Case, Payload, Place, saved

FILE = f"run/checkpoints/{NEWEST}"
TOKENIZER = "run/checkpoints/tokenizer.json"
NORM = "model.backbone.norm.weight"
GENERATE = ("generate", f"checkpoint={FILE}", "--prompt", "def alpha")
EVALUATE = ("evaluate", f"checkpoint={FILE}")
TRAIN = ("train", *SMALL, f"data.paths=[{CORPUS}]", EVERY_STEP, KEEP_ALL)
RESUME = (*TRAIN, f"resume={FILE}", "trainer.max_epochs=3")
CONTINUE = (*TRAIN, "hydra.run.dir=run", "resume=auto")


def _bytes(name: str, content: bytes, argv: tuple[str, ...] = GENERATE) -> Case:
    return Case(name, argv, [NEWEST], ["run"], lambda place: place.replace_checkpoint(content))


def _changed(name: str, change: Callable[[dict[str, Any]], Any], *words: str, argv: tuple[str, ...] = GENERATE) -> Case:
    return Case(name, argv, [NEWEST, *words], ["run"], lambda place: place.change_checkpoint(change))


def _shape(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["hyper_parameters"]["model"].update(values)


def _corpus(**node: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["hyper_parameters"]["config"].update(data=node)


def _all_damaged(place: Place) -> None:
    place.write("run/result.json", '{"status": "failed"}')
    for path in (place.root / "run/checkpoints").glob("*.ckpt"):
        place.write(f"run/checkpoints/{path.name}", b"x")


CASES = [
    # Code that wants to run
    _bytes("a pickle that runs a command", saved(Payload())),
    _bytes(
        "a payload among the weights",
        saved({"hyper_parameters": {"format": 1}, "state_dict": {"model.x": Payload()}}),
        EVALUATE,
    ),
    _bytes("training resumed from a payload", saved(Payload()), RESUME),
    _changed(
        "a checkpoint whose config runs a command",
        _corpus(_target_="os.system", command=f"touch {MARKER}"),
        "os.system",
        argv=EVALUATE,
    ),
    _changed(
        "a checkpoint whose config removes a file",
        _corpus(_target_="recyclegpt.checkpoints.file.remove_checkpoint", path=FILE),
        "remove_checkpoint",
        argv=EVALUATE,
    ),
    # Damage
    Case("a checkpoint cut off", GENERATE, [NEWEST], ["run"], lambda place: place.write(FILE, b"PK")),
    Case("one bit of a checkpoint flipped", GENERATE, [NEWEST], ["run"], lambda place: place.flip_bit(FILE, 3000)),
    Case(
        "a checksum file of garbage",
        GENERATE,
        [f"{NEWEST}.json"],
        ["run"],
        lambda place: place.write(f"{FILE}.json", b"\xff"),
    ),
    Case("a pipe in place of a checkpoint", GENERATE, [NEWEST], ["run"], lambda place: place.pipe(FILE)),
    _bytes("a checkpoint of another program", saved({"model": torch.ones(2)})),
    _changed("a checkpoint of a later format", lambda content: content["hyper_parameters"].update(format=9), "9"),
    # Weights and shapes
    _changed("a weight is missing", lambda content: content["state_dict"].pop(NORM), "Missing key", "norm.weight"),
    _changed(
        "a weight of another shape", lambda content: content["state_dict"].update({NORM: torch.ones(7)}), "norm.weight"
    ),
    _changed(
        "a weight that is not finite", lambda content: content["state_dict"][NORM].fill_(float("nan")), "norm.weight"
    ),
    _changed("a shape of a billion layers", _shape(num_layers=10**9), "num_layers"),
    _changed("a context of a trillion positions", _shape(context_length=10**12)),
    # Names
    Case("a checkpoint that is not there", ("generate", "checkpoint=nowhere.ckpt", "--prompt", "x"), ["nowhere.ckpt"]),
    Case("a checkpoint's name with a NUL byte", ("generate", "checkpoint=a\0b", "--prompt", "x"), ["checkpoint"]),
    # The tokenizer next to it
    Case(
        "a checkpoint without its tokenizer",
        GENERATE,
        [TOKENIZER],
        ["run"],
        lambda place: (place.root / TOKENIZER).unlink(),
    ),
    Case(
        "another tokenizer next to a checkpoint",
        GENERATE,
        [TOKENIZER],
        ["run"],
        lambda place: TextTokenizer.bytes().save(place.root / TOKENIZER),
    ),
    # Runs that cannot be resumed
    _changed("resumed without the optimizer's state", lambda content: content.pop("optimizer_states"), argv=RESUME),
    Case(
        "resumed on another corpus",
        (*RESUME, "data.paths=[corpus]"),
        ["data"],
        ["run", "corpus"],
        lambda place: place.write("corpus/part01.txt", "print(1)\n" * 900),
    ),
    Case("resumed with another shape", (*RESUME, "model.num_layers=3"), ["model.num_layers"], ["run"]),
    Case("a run folder of another config", (*CONTINUE, "loss.recycle_weight=0.5"), ["run"], ["run"]),
    Case("every checkpoint of a run damaged", CONTINUE, [NEWEST, OLDER], ["run"], _all_damaged),
]
