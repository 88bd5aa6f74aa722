"""Settings that are malformed, impossible or malicious."""

from __future__ import annotations

from tests.small_run import SMALL

from .place import CORPUS, MARKER, Case

TRAIN = ("train", *SMALL, f"data.paths=[{CORPUS}]")
RUNS_A_COMMAND = "{_target_: os.system, command: touch " + MARKER + "}"


def _overrides(name: str, overrides: list[str], *words: str) -> Case:
    return Case(name, (*TRAIN, *overrides), words)


def _file(name: str, text: bytes, *words: str) -> Case:
    return Case(
        name,
        ("train", "--config-dir", "mine", "experiment=bad", *TRAIN[1:]),
        words,
        prepare=lambda place: place.write("mine/experiment/bad.yaml", b"# @package _global_\n" + text),
    )


CASES = [
    # Code that wants to run
    _overrides("os.system as a callback", [f"+callbacks.mine={RUNS_A_COMMAND}"], "callbacks.mine"),
    _overrides("os.system inside a list", [f"+trainer.plugins=[{RUNS_A_COMMAND}]"], "trainer.plugins"),
    _overrides("os.system as a launcher", ["-m", "seed=1,2", "hydra.launcher._target_=os.system"], "os.system"),
    _overrides(
        "os.system as a log handler",
        ["+hydra.job_logging.handlers.mine={(): os.system, command: touch " + MARKER + "}"],
        "hydra.job_logging",
    ),
    _overrides(
        "a file remover of our own",
        ["+callbacks.mine={_target_: recyclegpt.checkpoints.file.remove_checkpoint, path: x}"],
        "callbacks.mine",
    ),
    _overrides(
        "a private part of a module",
        ["+callbacks.mine={_target_: recyclegpt.data.__builtins__.eval}"],
        "callbacks.mine",
    ),
    _file(
        "a YAML file that names a Python object",
        f"name: !!python/object/apply:os.system ['touch {MARKER}']\n".encode(),
        "bad",
    ),
    _overrides("a file that would be unpickled", ["--experimental-rerun=x.pickle"], "--experimental-rerun"),
    # Parts of another kind
    _overrides("a trainer of another kind", ["trainer._target_=torch.optim.SGD"], "trainer"),
    # Files
    _file("a YAML file with an unknown key", b"trainer:\n  max_epoch: 3\n", "max_epoch"),
    # Keys and values
    _overrides("an unknown key", ["trainer.max_epoch=1"], "max_epoch"),
    _overrides("an unknown flag", ["--no-such-flag"], "--no-such-flag"),
    _overrides("a broken override", ["loss.recycle_weight=(("], "loss.recycle_weight"),
    _overrides("a value of another type", ["trainer.max_epochs=many"], "trainer.max_epochs"),
    _overrides("a number that is none", ["loss.recycle_weight=nan"], "recycle_weight"),
    _overrides("a negative number of layers", ["model.num_layers=-1"], "model.num_layers"),
    _overrides("heads that do not divide the width", ["model.num_heads=3"], "model.num_heads"),
    _overrides("an interpolation of itself", ["seed=${seed}"], "seed"),
]
