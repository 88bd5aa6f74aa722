"""Checkpoints that are damaged, foreign or malicious."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .case import Cases
from .place import MARKER, NEWEST, OLDER, SMALL, Place

CASES = Cases("checkpoint")
GENERATE = ("generate", "checkpoint=run/checkpoints/" + NEWEST, "--prompt", "def alpha")
RESUME = ("train", *SMALL, "resume=run/checkpoints/" + OLDER)
CONTINUE = ("train", *SMALL, "hydra.run.dir=run", "resume=auto")


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARKER}",)


def saved(value: Any, **how: Any) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def weights(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's content."""
    return content["state_dict"]


def _changed(name: str, change: Callable[[dict[str, Any]], Any], *words: str) -> None:
    @CASES.refused(name, NEWEST, *words)
    def _(place: Place) -> Sequence[str]:
        place.change_checkpoint(change)
        return GENERATE


def _bytes(name: str, content: Callable[[], bytes], *words: str) -> None:
    @CASES.refused(name, NEWEST, *words)
    def _(place: Place) -> Sequence[str]:
        place.overwrite_checkpoint(content())
        return GENERATE


NORM = "model.backbone.norm.weight"
HEAD = "model.backbone.embed_tokens.weight"

_changed("a weight is missing", lambda c: weights(c).pop(NORM), "1 weights are missing", "backbone.norm.weight")
_changed(
    "a weight too many", lambda c: weights(c).update({"model.door": torch.ones(1)}), "1 weights are unknown", "door"
)
_changed(
    "a weight of another shape",
    lambda c: weights(c).update({NORM: torch.ones(7)}),
    "backbone.norm.weight is [7] torch.float32, the model's [32] torch.float32",
)
_changed(
    "a weight of whole numbers",
    lambda c: weights(c).update({NORM: torch.ones(32, dtype=torch.int64)}),
    "backbone.norm.weight is [32] torch.int64",
)
_changed("a weight that is a text", lambda c: weights(c).update({NORM: "ones"}), "backbone.norm.weight is str")
_changed(
    "a sparse weight",
    lambda c: weights(c).update({NORM: torch.ones(32).to_sparse()}),
    "backbone.norm.weight is",
    "sparse",
)
_changed(
    "a weight that is not finite",
    lambda c: weights(c)[NORM].fill_(float("nan")),
    "backbone.norm.weight",
    "not finite",
)
_changed("no weights at all", lambda c: c.pop("state_dict"), "lacks state_dict", "incomplete")
_changed("weights that are a list", lambda c: c.update(state_dict=[1, 2]), "lacks state_dict")
_changed("no hyper-parameters", lambda c: c.pop("hyper_parameters"), "is not a recyclegpt checkpoint of format 1")
_changed("a later format", lambda c: c["hyper_parameters"].update(format=9), "has format 9, this version reads 1")
_changed("a shape without a number", lambda c: c["hyper_parameters"]["model"].update(num_layers="two"), "num_layers")
_changed(
    "a shape of a billion layers",
    lambda c: c["hyper_parameters"]["model"].update(num_layers=10**9),
    "num_layers",
    "1000000000",
)
_changed(
    "a context of a trillion positions",
    lambda c: c["hyper_parameters"]["model"].update(context_length=10**12),
    "context_length",
    "1000000000000",
)
_changed(
    "a width beyond any memory",
    lambda c: c["hyper_parameters"]["model"].update(hidden_size=2**40, head_dim=16),
    "names a shape that cannot be built",
    "1099511627776",
)
_changed(
    "a shape with heads that do not divide its width",
    lambda c: c["hyper_parameters"]["model"].update(num_heads=5, num_kv_heads=5, head_dim=None),
    "num_heads: 5 does not divide hidden_size=32",
)
_changed(
    "a shape with an unknown part", lambda c: c["hyper_parameters"]["recycle"].update(door=1), "cannot be built", "door"
)
_changed("a config that is a text", lambda c: c["hyper_parameters"].update(config="x"), "lacks config")
_changed("a step that is no number", lambda c: c.update(global_step="soon"), "global_step", "soon")

_bytes("a pickle that runs a command", lambda: saved(Payload()), "cannot be read", "never unpickled")
_bytes("a bare pickle that runs a command", lambda: pickle.dumps({"state_dict": Payload()}), "cannot be read")
_bytes(
    "a payload inside of a checkpoint",
    lambda: saved({"hyper_parameters": {"format": 1}, "state_dict": {"model.x": Payload()}}),
    "cannot be read",
)
_bytes(
    "a pickle of the format before zip files",
    lambda: saved({"state_dict": {}}, _use_new_zipfile_serialization=False),
    "cannot be read",
)
_bytes("a list", lambda: saved([1, 2, 3]), "holds a list, not a checkpoint")
_bytes("a checkpoint of another program", lambda: saved({"model": torch.ones(2)}), "is not a recyclegpt checkpoint")
_bytes("no bytes", lambda: b"", "cannot be read")
_bytes("random bytes", lambda: bytes(range(256)) * 40, "cannot be read")
_bytes("a text", lambda: b"version https://git-lfs.github.com/spec/v1\n", "cannot be read")
_bytes("a zip file without a checkpoint", lambda: b"PK\x05\x06" + bytes(18), "cannot be read")


@CASES.refused("cut off in the middle", NEWEST, "bytes", "were written")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    content = place.checkpoint().read_bytes()
    place.checkpoint().write_bytes(content[: len(content) // 2])
    return GENERATE


@CASES.refused("one bit flipped", NEWEST, "is not what was written", "sha256")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    content = bytearray(place.checkpoint().read_bytes())
    content[len(content) // 2] ^= 1
    place.checkpoint().write_bytes(content)
    return GENERATE


def _sidecar(name: str, content: str | bytes, *words: str) -> None:
    @CASES.refused(name, f"{NEWEST}.json", *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("run")
        place.write(f"run/checkpoints/{NEWEST}.json", content)
        return GENERATE


_sidecar("a checksum file of garbage", b"\xff\x00{", "cannot be read")
_sidecar("a checksum file of a later format", '{"format": 7}', "has format 7, this version reads 1")
_sidecar("a checksum file without a checksum", '{"format": 1, "size": 3}', "cannot be read", "sha256")
_sidecar("a checksum file with an infinite size", '{"format": 1, "size": 1e999, "sha256": ""}', "cannot be read")
_sidecar("a checksum file nested without end", "[" * 200_000, "cannot be read")


@CASES.refused("a folder in place of the file", NEWEST, "is a folder")
def _(place: Place) -> Sequence[str]:
    place.overwrite_checkpoint(b"")
    place.checkpoint().unlink()
    place.checkpoint().mkdir()
    place.checkpoint(OLDER).unlink()
    return ("generate", "checkpoint=run", "--prompt", "x")


@CASES.refused("a pipe in place of the file", NEWEST, "is no regular file")
def _(place: Place) -> Sequence[str]:
    place.overwrite_checkpoint(b"")
    place.checkpoint().unlink()
    os.mkfifo(place.checkpoint())
    return GENERATE


@CASES.refused("a pipe among the checkpoints of a run", NEWEST, "is no regular file")
def _(place: Place) -> Sequence[str]:
    place.overwrite_checkpoint(b"")
    place.checkpoint().unlink()
    place.checkpoint(OLDER).unlink()
    os.mkfifo(place.checkpoint())
    return ("generate", "checkpoint=run", "--prompt", "x")


@CASES.refused("a link to itself", NEWEST, "link")
def _(place: Place) -> Sequence[str]:
    place.overwrite_checkpoint(b"")
    place.checkpoint().unlink()
    place.checkpoint().symlink_to(NEWEST)
    return GENERATE


@CASES.refused("a checkpoint that is not there", "run/missing.ckpt", "does not exist")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    return ("generate", "checkpoint=run/missing.ckpt", "--prompt", "x")


@CASES.refused("a folder without checkpoints", "corpus", "holds no step_*.ckpt")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    return ("generate", "checkpoint=corpus", "--prompt", "x")


@CASES.refused("a checkpoint of the web", "is not on this machine")
def _(place: Place) -> Sequence[str]:
    return ("generate", "checkpoint=https://example.org/step_0000001.ckpt", "--prompt", "x")


@CASES.refused("a name with a NUL byte", "checkpoint", "cannot be read")
def _(place: Place) -> Sequence[str]:
    return ("generate", "checkpoint=a\0b", "--prompt", "x")


@CASES.refused("a name longer than a file system takes", "checkpoint", "too long")
def _(place: Place) -> Sequence[str]:
    return ("generate", f"checkpoint={'a' * 5000}", "--prompt", "x")


# Going on with training ---------------------------------------------------------------------------------------------


def _resumed(name: str, change: Callable[[dict[str, Any]], Any], *words: str) -> None:
    @CASES.refused(name, NEWEST, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus")
        place.change_checkpoint(change)
        return (*RESUME[:-1], f"resume=run/checkpoints/{NEWEST}", "trainer.max_epochs=2")


_resumed("resumed without an optimizer's state", lambda c: c.pop("optimizer_states"), "lacks optimizer_states")
_resumed("resumed with an optimizer's state of a text", lambda c: c.update(optimizer_states="x"), "optimizer_states")
_resumed("resumed with an empty optimizer's state", lambda c: c.update(optimizer_states=[{}]), "optimizer_states")
_resumed("resumed with loops of a text", lambda c: c.update(loops="x"), "loops")
_resumed("resumed with a step that is a text", lambda c: c.update(global_step="x"), "global_step")
_resumed(
    "resumed with a position in the data of another format",
    lambda c: c["TextDataModule"].update(format=3),
    "data state has format 3",
)
_resumed(
    "resumed without a position in the data", lambda c: c["TextDataModule"].pop("ranks"), "TextDataModule", "ranks"
)
_resumed(
    "resumed at a batch before the first",
    lambda c: c["TextDataModule"].update(ranks=[{"batch": -3}]),
    "TextDataModule",
    "batch",
)
_resumed("resumed with settings of a list", lambda c: c["TextDataModule"].update(settings=[1]), "TextDataModule")


@CASES.refused("a file of the corpus changed since the checkpoint", "data: its files have changed", "trained with")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    place.write("corpus/part1.txt", "print(1)\n" * 900)
    return (*RESUME, "trainer.max_epochs=2")


@CASES.refused("resumed with another tokenizer", "data.tokenizer: it is another one")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    return (*RESUME, "data.tokenizer.kind=byte", "trainer.max_epochs=2")


@CASES.refused("resumed with another shape", "model.num_layers: the checkpoint has 2, this run 3")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    return (*RESUME, "model.num_layers=3")


@CASES.refused("a run folder of another config", "run", "holds a run of another config")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    return (*CONTINUE, "loss.recycle_weight=0.5")


@CASES.refused("a run folder with a provenance of garbage", "provenance.json", "config_hash")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    place.write("run/provenance.json", b"\x80\x81")
    return CONTINUE


@CASES.refused("a run folder with a provenance nested without end", "provenance.json", "config_hash")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    place.write("run/provenance.json", "[" * 200_000)
    return CONTINUE


@CASES.refused("every checkpoint of a run damaged", NEWEST, OLDER, "none in", "can be read")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    (place.root / "run/result.json").unlink()
    for name in (NEWEST, OLDER):
        place.checkpoint(name).write_bytes(b"x")
    return CONTINUE


@CASES.tolerated("the newest checkpoint of a run damaged", NEWEST, "bytes", f"going on from {OLDER}")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    (place.root / "run/result.json").unlink()
    place.checkpoint().write_bytes(b"x")
    return CONTINUE


@CASES.refused("resume names a checkpoint that is not there", "resume", "nowhere.ckpt", "does not exist")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    return (*RESUME[:-1], "resume=nowhere.ckpt")


@CASES.refused("a backbone of a malicious checkpoint", NEWEST, "cannot be read")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.overwrite_checkpoint(saved(Payload()))
    return ("train", *SMALL, f"backbone.checkpoint=run/checkpoints/{NEWEST}", "backbone.frozen=true")


@CASES.refused("training resumed from a malicious checkpoint", NEWEST, "cannot be read")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.overwrite_checkpoint(saved(Payload()))
    return (*RESUME[:-1], f"resume=run/checkpoints/{NEWEST}")


@CASES.refused("evaluated from a malicious checkpoint", NEWEST, "cannot be read")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.overwrite_checkpoint(saved(Payload()))
    return ("evaluate", f"checkpoint=run/checkpoints/{NEWEST}")


@CASES.refused("measured from a malicious checkpoint", NEWEST, "cannot be read")
def _(place: Place) -> Sequence[str]:
    place.overwrite_checkpoint(saved(Payload()))
    return ("bench", f"checkpoint=run/checkpoints/{NEWEST}")


def _config_of(name: str, data: Any, *words: str) -> None:
    @CASES.refused(name, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus")
        place.change_checkpoint(lambda content: content["hyper_parameters"]["config"].update(data=data))
        return ("evaluate", f"checkpoint=run/checkpoints/{NEWEST}")


_config_of(
    "a checkpoint whose config runs a command",
    {"_target_": "os.system", "command": f"touch {MARKER}"},
    NEWEST,
    "data._target_: os.system is not allowed",
)
_config_of(
    "a checkpoint whose config removes a file",
    {"_target_": "recyclegpt.checkpoints.file.remove_checkpoint", "path": "corpus/part0.txt"},
    NEWEST,
    "remove_checkpoint is not allowed",
)
_config_of("a checkpoint whose config has no corpus", None, NEWEST, "data")
_config_of("a checkpoint whose corpus is a text", "x", NEWEST, "data")
_config_of(
    "a checkpoint whose corpus is something else",
    {"_target_": "recyclegpt.models.RecycleConfig"},
    NEWEST,
    "data",
    "RecycleConfig",
)
