"""Configs and overrides that are malformed, malicious, or name what lies elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from .case import Cases
from .place import MARKER, SMALL, Place

CASES = Cases("config")
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


def _overrides(name: str, overrides: Sequence[str], *words: str) -> None:
    @CASES.refused(name, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus")
        return ("train", *SMALL, *overrides)


def _file(name: str, text: str | bytes, *words: str) -> None:
    @CASES.refused(name, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus")
        return ("train", *place.experiment(text), *SMALL)


def _target(name: str, target: str, *words: str) -> None:
    arguments = "{_target_: " + target + "}"
    _overrides(f"{name} as a callback", [f"+callbacks.mine={arguments}"], "callbacks.mine._target_", *words)


_target("os.system", f"os.system, command: touch {MARKER}", "os.system is not allowed")
_target("subprocess.run", f"subprocess.run, args: [touch, {MARKER}]", "subprocess.run is not allowed")
_target("torch.hub.load", "torch.hub.load, repo_or_dir: a/b, model: c", "torch.hub.load is not allowed")
_target("torch.load", "torch.load, f: x.pt, weights_only: false", "torch.load is not allowed")
_target("builtins.eval", "builtins.eval, _args_: ['1']", "builtins.eval is not allowed")
_target(
    "the program itself", "recyclegpt.commands.main.main, argv: [train]", "recyclegpt.commands.main.main is not allowed"
)
_target(
    "a writer of our own",
    "recyclegpt.reporting.write_report, folders: [corpus], output: out",
    "write_report is not allowed",
)
_target("a compiler of our own", "recyclegpt.kernels.build.build", "recyclegpt.kernels.build")
_target("what a module has imported", "recyclegpt.checkpoints.load.torch.load", "cannot be imported")
_target("a list", "[os.system, x]", "is not a string")
_target("a number", "5", "5 is not a string")
_target("dots alone", "'...'", "is not allowed")
_target("a private part", "recyclegpt.data.__builtins__.eval", "is not allowed")
_overrides(
    "os.system deep inside of a list",
    ["+trainer.plugins=[{_target_: os.system, command: touch " + MARKER + "}]"],
    "trainer.plugins[0]._target_: os.system is not allowed",
)
_overrides(
    "os.system as a callback of Hydra",
    ["+hydra.callbacks.mine={_target_: os.system, command: touch " + MARKER + "}"],
    "hydra.callbacks",
    "os.system",
)
_overrides(
    "os.system as a launcher",
    ["-m", "seed=1,2", "hydra.launcher._target_=os.system"],
    "hydra.launcher._target_",
    "os.system",
)
_overrides(
    "os.system as a sweeper",
    ["-m", "seed=1,2", "hydra.sweeper._target_=os.system"],
    "hydra.sweeper._target_",
    "os.system",
)
_overrides(
    "os.system as a log handler",
    ["+hydra.job_logging.handlers.mine={(): os.system, command: touch " + MARKER + "}"],
    "hydra.job_logging",
)
_file(
    "os.system as a log handler, from a file",
    f"hydra:\n  job_logging:\n    handlers:\n      mine:\n        (): os.system\n        command: touch {MARKER}\n",
    "hydra.job_logging.handlers.mine",
    "os.system",
)
_file(
    "a log handler of a class that is none",
    "hydra:\n  job_logging:\n    handlers:\n      mine:\n"
    f"        class: subprocess.Popen\n        args: [touch, {MARKER}]\n",
    "hydra.job_logging.handlers.mine",
    "subprocess.Popen",
)
_overrides("a group of another kind", ["model._target_=recyclegpt.models.RecycleConfig"], "model")
_overrides("a corpus of another kind", ["data={_target_: recyclegpt.models.RecycleConfig}"], "data")
_overrides("a trainer of another kind", ["trainer._target_=torch.optim.SGD"], "trainer")
_overrides("an optimizer of another kind", ["optimizer._target_=torch.optim.SGD"], "optimizer")
_overrides(
    "a callback of another kind", ["+callbacks.mine={_target_: recyclegpt.models.RecycleConfig}"], "callbacks.mine"
)
_overrides("a logger of another kind", ["logger={_target_: recyclegpt.models.RecycleConfig}"], "logger")

# Names ----------------------------------------------------------------------------------------------------------------

for bad in ("../up", "..", "/tmp/up", "a\\b", "''", "a,b", "[1]", "a\tb"):
    _overrides(f"the name {bad!r}", [f"name={bad}" if bad != "a,b" else "name='a,b'"], "name")
for key in ("sweep.name", "sweep.tag"):
    for bad in ("../up", "/tmp/up", ".."):
        _overrides(f"the name {bad!r} as {key}", ["-m", "seed=1,2", f"{key}={bad}"], key, bad)
_overrides("a name longer than a file system takes", [f"name={'a' * 300}"], "name", "long")


@CASES.refused("an experiment outside of the folder", "experiment", "../../outside")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.write("outside.yaml", "# @package _global_\nseed: 5\n")
    place.experiment("seed: 1\n")
    return ("train", "--config-dir", "mine", *SMALL, "experiment=../../outside")


@CASES.refused("a defaults list that leads outside of the folder", "../../outside")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus")
    place.write("outside.yaml", "# @package _global_\nseed: 5\n")
    return ("train", *place.experiment("defaults:\n  - ../../outside\n"), *SMALL)


# Files ----------------------------------------------------------------------------------------------------------------

_file("a YAML bomb", BOMB, "experiment/bad.yaml", "aliases")
_file("a YAML file that is nested without end", "a: " + "[" * 20_000, "experiment/bad.yaml")
_file("a YAML file that is not UTF-8", b"name: caf\xe9\n", "experiment/bad.yaml:2", "UTF-8")
_file("a YAML file in UTF-16", "seed: 1\n".encode("utf-16"), "experiment/bad.yaml", "UTF-8")
_file("a YAML file with a NUL byte", b"name: a\0b\n", "experiment/bad.yaml:2")
_file("a YAML file with a tab", "trainer:\n\tmax_epochs: 1\n", "experiment/bad.yaml:3", "tab")
_file("a YAML file with a key twice", "seed: 1\nname: x\nseed: 2\n", "experiment/bad.yaml:4", "duplicate key seed")
_file("a YAML file with an open bracket", "name: [a\n", "experiment/bad.yaml:")
_file(
    "a YAML file that names a Python object",
    f"name: !!python/object/apply:os.system ['touch {MARKER}']\n",
    "experiment/bad.yaml:2",
    "python/object/apply:os.system",
)
_file("a YAML file that is a list", "- 1\n- 2\n", "experiment/bad.yaml")
_file("a YAML file that is a text", "just words\n", "experiment/bad.yaml")
_file("a YAML file with two documents", "seed: 1\n---\nseed: 2\n", "experiment/bad.yaml")
_file("a YAML file with an unknown key", "trainer:\n  max_epoch: 3\n", "max_epoch", "max_epochs")
_file(
    "a YAML file with os.system",
    f"model:\n  _target_: os.system\n  command: touch {MARKER}\n",
    "os.system is not allowed",
)

# Values ---------------------------------------------------------------------------------------------------------------

_overrides("an interpolation in a circle", ["seed=${max_skipped_steps}", "max_skipped_steps=${seed}"], "seed", "circle")
_overrides("an interpolation of itself", ["seed=${seed}"], "seed", "circle")
_overrides("an interpolation that leads nowhere", ["seed=${sed}"], "seed: ${sed}", "does not exist")
_overrides("an environment variable that is not set", ["name=${oc.env:NOT_SET_ANYWHERE}"], "name", "NOT_SET_ANYWHERE")
_overrides("an environment variable that is a path", ["name=${oc.env:PWD}"], "name", "is not a folder's name")
_overrides("an unknown resolver", ["name=${os.system:touch}"], "name", "os.system")
_overrides("an unknown key", ["trainer.max_epoch=1"], "max_epoch", "did you mean trainer.max_epochs?")
_overrides("an unknown choice", ["model=huge"], "model=huge", "no such choice")
_overrides("a value of another type", ["trainer.max_epochs=many"], "trainer.max_epochs", "many")
_overrides("a number that is none", ["loss.recycle_weight=nan"], "loss.recycle_weight", "nan")
_overrides("an infinite number", ["+optimizer.learning_rate=inf"], "optimizer")
_overrides("a number of layers below zero", ["model.num_layers=-1"], "model.num_layers: -1 is not positive")
_overrides("a number of a thousand digits", [f"seed={'9' * 1000}"], "seed")
_overrides("a number of ten thousand digits", [f"seed={'9' * 10_000}"], "seed")
_overrides("a width beyond any memory", ["model.hidden_size=67108864"], "model", "GB")
_overrides("more layers than any memory holds", ["model.num_layers=100000000"], "model", "GB")
_overrides("a context beyond any memory", ["model.context_length=1000000000000"], "model.context_length")
_overrides("a vocabulary beyond any memory", ["data.tokenizer.vocab_size=1000000000000"], "data.tokenizer.vocab_size")
_overrides("heads that do not divide the width", ["model.num_heads=3"], "model.num_heads: 3 does not divide")
_overrides("a value for a section", ["model.num_layers=2", "trainer=5"], "trainer=5")
_overrides("a broken override", ["loss.recycle_weight=(("], "loss.recycle_weight=((", "cannot be read")
_overrides("a deeply nested override", ["data.paths=" + "[" * 2000 + "]" * 2000], "data.paths")
_overrides("an override without a key", ["=5"], "has no key")
_overrides("an unknown flag", ["--no-such-flag"], "--no-such-flag: unknown flag")
_overrides("a file that would be unpickled", ["--experimental-rerun=x.pickle"], "--experimental-rerun")
_overrides(
    "a folder of configs that is not there", ["--config-dir", "nowhere"], "nowhere", "no such configuration folder"
)
_overrides(
    "several mistakes at once",
    ["trainer.max_epochs=0", "seed=-1", "name=.."],
    "max_epochs",
    "seed",
    "name",
    "4 problems",
)
