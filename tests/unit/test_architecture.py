"""The rules that hold the rooms of `src/` apart, read from the source itself: nothing is imported.

Each rule is a function from a source tree to the breaches in it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
MAX_LINES = 300

ARROWS: dict[str, str] = {
    "hardware": "",
    "kernels": "",
    "data": "",
    "reporting": "",
    "models": "hardware",
    "decoding": "kernels models hardware",
    "checkpoints": "models data",
    "training": "models data checkpoints hardware",
    "benchmark": "decoding training models hardware",
    "evaluation": "decoding training data models",
    "export": "decoding checkpoints models data reporting",
    "callbacks": "evaluation benchmark training decoding checkpoints reporting hardware",
    "configuration": "checkpoints training decoding models data",
    "runs": "configuration callbacks training checkpoints hardware",
    "commands": "runs export",
}
"""Room: the rooms it may import. What those may import, it may import too."""
FOR_EVERYONE = {"errors", "files", "console", "gguf_header"}
KNOW_HYDRA = {"configuration", "runs", "commands"}
"""Commands and runs read the values of a composed config; `configuration` alone composes one."""


def rooms_above(room: str) -> set[str]:
    """All rooms that a room may import."""
    above = set(ARROWS[room].split())
    return above.union(*map(rooms_above, above))


CONFIG_PACKAGES = {"hydra", "omegaconf", "hydra_plugins"}
OPTIONAL_PACKAGES = {"transformers", "gguf", "lm_eval", "liger_kernel", "torchdata"}
OWNERS = {
    "transformers": {"recyclegpt/export/transformers_model.py", "recyclegpt/benchmark/transformers_baseline.py"},
}
"""Files of an optional package that has more than one: of `transformers`, our model is one of theirs in the first, and
theirs is the baseline of ours in the second."""
PICKLERS = {"pickle", "dill", "cloudpickle", "joblib"}
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
        return self.room in KNOW_HYDRA or self.place.startswith("hydra_plugins/")

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
        if source.room not in ARROWS:
            found.append(f"{source.place}: the room {source.room} has no entry in ARROWS")
            continue
        allowed = rooms_above(source.room) | {source.room} | FOR_EVERYONE
        if source.room == "commands":
            allowed.add("__version__")
        for line, name in source.imports():
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == "recyclegpt" and target not in allowed:
                found.append(f"{source.place}:{line}: {source.room} may not import {name}")
    return found


def import_cycles(sources: list[Source]) -> list[str]:
    """Files that import each other, directly or through others, at any depth of the code."""
    modules = {
        Path(source.place).with_suffix("").as_posix().removesuffix("/__init__").replace("/", "."): source
        for source in sources
    }
    imports: dict[str, set[str]] = {name: set() for name in modules}
    for name, source in modules.items():
        for _, imported in source.imports():
            while imported and imported not in modules:
                imported = imported.rpartition(".")[0]
            if imported and imported != name:
                imports[name].add(imported)
    # What imports nothing that is left cannot be in a circle.
    while free := {name for name, targets in imports.items() if not targets & imports.keys()}:
        for name in free:
            del imports[name]
    # Nor can what nothing left imports.
    while free := {name for name in imports if not any(name in targets for targets in imports.values())}:
        for name in free:
            del imports[name]
    return [f"import cycle: {', '.join(sorted(imports))}"] if imports else []


def hydra_outside_its_rooms(sources: list[Source]) -> list[str]:
    return [
        f"{source.place}:{line}: {name}; only configuration/, runs/ and commands/ know Hydra"
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


def unsafe_loading(sources: list[Source]) -> list[str]:
    found = []
    for source in sources:
        for line, name in source.imports():
            if name.partition(".")[0] in PICKLERS or name == "torch.load":
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
            if (
                by_name
                and source.room not in {"commands", "configuration"}
                and source.place not in {"recyclegpt/__init__.py", "recyclegpt/models/drafts/__init__.py"}
            ) or name.startswith("sys.path."):
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


RULES: list[Callable[[list[Source]], list[str]]] = [
    imports_against_the_arrows,
    import_cycles,
    hydra_outside_its_rooms,
    optional_packages_with_two_owners,
    optional_packages_needed_at_import,
    vague_names,
    unsafe_loading,
    hidden_imports,
    long_files,
    second_owners_of_the_shift,
    reads_of_estimated_steps,
]


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read(SOURCE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps(rule: Callable[[list[Source]], list[str]], sources: list[Source]) -> None:
    breaches = rule(sources)
    assert not breaches, "\n".join(breaches)


def test_a_breach_is_found(tmp_path: Path) -> None:
    files = {
        "models/a.py": "from recyclegpt.data import b",
        "data/b.py": "from recyclegpt.data import c",
        "data/c.py": "import hydra\nfrom recyclegpt.data import b",
    }
    for place, text in files.items():
        path = tmp_path / "recyclegpt" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sources = read(tmp_path)
    assert len(imports_against_the_arrows(sources)) == 1
    assert import_cycles(sources) == ["import cycle: recyclegpt.data.b, recyclegpt.data.c"]
    assert len(hydra_outside_its_rooms(sources)) == 1
