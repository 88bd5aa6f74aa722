"""The rules that hold the rooms of `src/` apart, read from the source itself: nothing is imported.

Each rule is a function from a source tree to the breaches in it. The second half of the file proves that each can fail.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
MAX_LINES = 350

MAY_IMPORT: dict[str, set[str]] = {
    "models": set(),
    "data": set(),
    "reporting": set(),
    "decoding": {"models"},
    "training": {"models", "data"},
    "evaluation": {"models", "data", "decoding", "training"},
    "callbacks": {"models", "data", "decoding", "training", "evaluation", "reporting"},
    "cli": {"models", "data", "decoding", "training", "evaluation", "callbacks", "reporting"},
}
"""Room: the other rooms it may import. Everyone may import `recyclegpt.errors`."""

CONFIG_PACKAGES = {"hydra", "omegaconf", "hydra_plugins"}
OPTIONAL_PACKAGES = {"transformers", "lm_eval", "liger_kernel", "torchdata"}
OWNERS = {
    "transformers": {"recyclegpt/decoding/transformers_model.py", "recyclegpt/evaluation/transformers_baseline.py"},
}
"""Files of an optional package that has more than one: of `transformers`, our model is one of theirs in the first, and
theirs is the baseline of ours in the second."""
PICKLERS = {"pickle", "dill", "cloudpickle", "joblib"}
PICKLES_ITS_OWN_MEMORY = {"recyclegpt/data/hf_stream.py"}
"""It keeps a pickled dataset in memory and makes fresh ones from it; no file is read that way."""
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclass(frozen=True)
class Source:
    """One parsed file; `place` is its path below the source tree."""

    place: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str | None:
        """The room it lies in; None: beside the rooms."""
        parts = Path(self.place).parts
        return parts[1] if parts[0] == "recyclegpt" and len(parts) > 2 else None

    @property
    def knows_hydra(self) -> bool:
        return self.room == "cli" or self.place.startswith("hydra_plugins/")

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and dotted name of everything imported, at any depth; `from a import b` counts as `a.b`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)

    def calls(self) -> Iterator[tuple[ast.Call, str]]:
        """Every call, and the dotted name that is called: `torch.load`, or `.load` of an expression."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield node, _dotted(node.func)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def read(root: Path) -> list[Source]:
    files = sorted(root.rglob("*.py"))
    assert files, f"no Python files under {root}"
    texts = [path.read_text(encoding="utf-8") for path in files]
    return [
        Source(path.relative_to(root).as_posix(), text, ast.parse(text))
        for path, text in zip(files, texts, strict=True)
    ]


def imports_against_the_arrows(sources: list[Source]) -> list[str]:
    found = []
    for source in sources:
        if source.room is None:
            continue
        if source.room not in MAY_IMPORT:
            found.append(f"{source.place}: the room {source.room} has no entry in MAY_IMPORT")
            continue
        allowed = (
            MAY_IMPORT[source.room] | {source.room, "errors"} | ({"__version__"} if source.room == "cli" else set())
        )
        for line, name in source.imports():
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == "recyclegpt" and target not in allowed:
                found.append(f"{source.place}:{line}: {source.room} may not import {name}")
    return found


def hydra_outside_the_cli(sources: list[Source]) -> list[str]:
    return [
        f"{source.place}:{line}: {name}; only cli/ knows Hydra"
        for source in sources
        if not source.knows_hydra
        for line, name in source.imports()
        if name.partition(".")[0] in CONFIG_PACKAGES
    ]


def optional_packages_with_two_owners(sources: list[Source]) -> list[str]:
    owners: dict[str, set[str]] = {}
    for source in sources:
        for _, name in source.imports():
            owners.setdefault(name.partition(".")[0], set()).add(source.place)
    return [
        f"{package}: optional, and imported by more than the one file that owns it: {sorted(owners[package])}"
        for package in sorted(OPTIONAL_PACKAGES & owners.keys())
        if len(owners[package]) > 1 and not owners[package] <= OWNERS.get(package, set())
    ]


def optional_packages_needed_at_import(sources: list[Source]) -> list[str]:
    found = []
    for source in sources:
        for node in source.tree.body:
            top = Source(source.place, "", ast.Module([node], []))
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {name.partition(".")[0] for _, name in top.imports()}
                found += [
                    f"{source.place}:{node.lineno}: {name} is optional: import it where it is used, or inside try"
                    for name in sorted(names & OPTIONAL_PACKAGES)
                ]
    return found


def vague_names(sources: list[Source]) -> list[str]:
    found = []
    for source in sources:
        for part in Path(source.place).with_suffix("").parts:
            head, _, number = part.rpartition("_v")
            if part.strip("_") in VAGUE_NAMES or part.endswith(("_utils", "_helpers")) or (head and number.isdigit()):
                found.append(f"{source.place}: name it after the one idea it holds")
    return found


def imports_of_the_other_lightning(sources: list[Source]) -> list[str]:
    return [
        f"{source.place}:{line}: {name}; import lightning.pytorch, whose classes are not the same"
        for source in sources
        for line, name in source.imports()
        if name.partition(".")[0] == "pytorch_lightning"
    ]


def unsafe_loading(sources: list[Source]) -> list[str]:
    found = []
    for source in sources:
        for line, name in source.imports():
            pickles = name.partition(".")[0] in PICKLERS and source.place not in PICKLES_ITS_OWN_MEMORY
            if pickles or name == "torch.load":
                found.append(f"{source.place}:{line}: {name}; call torch.load(..., weights_only=True)")
        for node, name in source.calls():
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            resumes = name.rpartition(".")[2] in {"fit", "validate", "test"} and "ckpt_path" in keywords
            loads = name in {"torch.load", "pickle.load"} or name.endswith(".load_from_checkpoint")
            if (loads or resumes) and not _is_true(keywords.get("weights_only")):
                found.append(f"{source.place}:{node.lineno}: {name} without weights_only=True runs what the file says")
            if "allow_pickle" in keywords and not _is_false(keywords["allow_pickle"]):
                found.append(f"{source.place}:{node.lineno}: {name} with allow_pickle runs what the file says")
            if name.startswith("torch.hub."):
                found.append(f"{source.place}:{node.lineno}: {name} runs code that it downloads")
    return found


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def hidden_imports(sources: list[Source]) -> list[str]:
    """Imports that the arrows could not see."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                found.append(f"{source.place}:{node.lineno}: relative import; write the full name")
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                found.append(f"{source.place}:{node.lineno}: import *")
        for node, name in source.calls():
            by_name = name in {"__import__", "import_module", "importlib.import_module"}
            if (by_name and source.room != "cli" and source.place != "recyclegpt/__init__.py") or name.startswith(
                "sys.path."
            ):
                found.append(f"{source.place}:{node.lineno}: {name} hides what is imported")
    return found


def long_files(sources: list[Source]) -> list[str]:
    lengths = {source.place: len(source.text.splitlines()) for source in sources}
    return [f"{place}: {length} lines, {MAX_LINES} at most" for place, length in lengths.items() if length > MAX_LINES]


def second_owners_of_the_shift(sources: list[Source]) -> list[str]:
    """The packer gives the views t, t+1, t+2, ...; whoever rolls a tensor shifts a second time."""
    return [
        f"{source.place}:{node.lineno}: {name}; the packer alone shifts tokens"
        for source in sources
        if source.room in {"models", "training"}
        for node, name in source.calls()
        if name.rpartition(".")[2] == "roll"
    ]


def reads_of_estimated_steps(sources: list[Source]) -> list[str]:
    """Reading it keeps Lightning from restoring the loader's state, without a word."""
    return [
        f"{source.place}:{node.lineno}: estimated_stepping_batches; compute the number of steps from the config"
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and node.attr == "estimated_stepping_batches"
    ]


Rule = Callable[[list[Source]], list[str]]

# Rule, the place of a file that breaks it, and that file.
BREACHES: list[tuple[Rule, str, str]] = [
    (imports_against_the_arrows, "models/a.py", "import recyclegpt.data.packing"),
    (imports_against_the_arrows, "data/a.py", "from recyclegpt.models import RecycleGPT"),
    (imports_against_the_arrows, "decoding/a.py", "def f():\n    from recyclegpt import training"),
    (imports_against_the_arrows, "training/a.py", "from recyclegpt.decoding.decoder import Decoder"),
    (imports_against_the_arrows, "evaluation/a.py", "from recyclegpt import cli"),
    (imports_against_the_arrows, "callbacks/a.py", "import recyclegpt.cli.main"),
    (imports_against_the_arrows, "reporting/a.py", "from recyclegpt.evaluation import speed"),
    (imports_against_the_arrows, "models/a.py", "from recyclegpt import generate"),
    (imports_against_the_arrows, "serving/a.py", "import torch"),
    (hydra_outside_the_cli, "training/a.py", "from hydra.utils import instantiate"),
    (hydra_outside_the_cli, "data/a.py", "def f():\n    import omegaconf"),
    (optional_packages_with_two_owners, "models/a.py", "def f():\n    import transformers"),
    (optional_packages_with_two_owners, "evaluation/a.py", "def f():\n    import lm_eval"),
    (optional_packages_needed_at_import, "evaluation/a.py", "from lm_eval.api.model import TemplateLM"),
    (vague_names, "models/utils.py", ""),
    (vague_names, "models/decoder_v2.py", ""),
    (vague_names, "models/tensor_helpers.py", ""),
    (imports_of_the_other_lightning, "training/a.py", "from pytorch_lightning import Trainer"),
    (unsafe_loading, "training/a.py", "torch.load(path)"),
    (unsafe_loading, "training/a.py", "torch.load(path, weights_only=safe)"),
    (unsafe_loading, "training/a.py", "from torch import load"),
    (unsafe_loading, "training/a.py", "Module.load_from_checkpoint(path)"),
    (unsafe_loading, "cli/a.py", "trainer.fit(module, data, ckpt_path=path)"),
    (unsafe_loading, "data/a.py", "np.load(path, allow_pickle=True)"),
    (unsafe_loading, "data/a.py", "import pickle"),
    (unsafe_loading, "data/hf_stream.py", "import pickle\npickle.load(file)"),
    (unsafe_loading, "models/a.py", "torch.hub.load(name)"),
    (hidden_imports, "models/a.py", "from ..data import packing"),
    (hidden_imports, "models/a.py", "from torch import *"),
    (hidden_imports, "models/a.py", "importlib.import_module(name)"),
    (hidden_imports, "cli/a.py", "sys.path.insert(0, folder)"),
    (long_files, "models/a.py", "x = 1\n" * (MAX_LINES + 1)),
    (second_owners_of_the_shift, "training/a.py", "targets = tokens_BT.roll(-1, 1)"),
    (second_owners_of_the_shift, "models/a.py", "torch.roll(tokens_BT, -1)"),
    (reads_of_estimated_steps, "training/a.py", "steps = self.trainer.estimated_stepping_batches"),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in BREACHES))

INNOCENT = {
    "errors.py": "class ConfigError(ValueError): ...",
    "models/layers.py": "import torch\nfrom recyclegpt.errors import ConfigError\nfrom recyclegpt.models import cache",
    "evaluation/harness.py": "def f():\n    import transformers, lm_eval",
    "training/checkpoint.py": "torch.load(path, weights_only=True)\nmodule.fit(data)",
    "cli/train.py": "import hydra\nfrom recyclegpt import __version__\nfrom recyclegpt.reporting import table\n"
    "importlib.import_module(name)\ntrainer.fit(module, ckpt_path=path, weights_only=True)",
    "data/packing.py": "views = tokens.roll(1)\nnp.load(path, allow_pickle=False)",
}


def write_tree(root: Path, files: dict[str, str]) -> list[Source]:
    for place, text in files.items():
        path = root / "recyclegpt" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read(root)


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read(SOURCE)


@pytest.mark.parametrize("rule", RULES)
def test_source_keeps(rule: Rule, sources: list[Source]) -> None:
    breaches = rule(sources)
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize(("rule", "place", "text"), BREACHES)
def test_rule_finds_its_breach(rule: Rule, place: str, text: str, tmp_path: Path) -> None:
    sources = write_tree(tmp_path, {**INNOCENT, place: text})
    assert any(place in breach for breach in rule(sources))


@pytest.mark.parametrize("rule", RULES)
def test_rule_passes_what_is_innocent(rule: Rule, tmp_path: Path) -> None:
    assert rule(write_tree(tmp_path, INNOCENT)) == []


def test_every_room_is_known(sources: list[Source]) -> None:
    assert {source.room for source in sources if source.room} <= MAY_IMPORT.keys()
