"""Which Python source is installed here, and which package each file belongs to. Nothing is read or imported."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from recyclegpt.data.stdlib import is_portable

_SITE_FOLDERS = {"site-packages", "dist-packages"}
# Copies of other packages: what is held out under its own name would be trained on here.
_VENDORED = {
    "_extern",
    "_externals",
    "_third_party",
    "_vendor",
    "_vendored",
    "extern",
    "externals",
    "third_party",
    "thirdparty",
    "vendor",
    "vendored",
}
# Top-level folders that many distributions leave behind by mistake; they would make all of these one package. The
# standard library's own tests, which not every installation has, go with them.
_NOBODYS = {"benchmarks", "bin", "doc", "docs", "example", "examples", "scripts", "test", "tests"}
_OURS = __name__.partition(".")[0]


class InstalledFile(NamedTuple):
    """A Python source file of a package."""

    package: str
    place: str
    """Path below its root, the same on every machine; that of the standard library begins with `stdlib/`."""
    path: Path


def default_roots() -> list[Path]:
    """The standard library, then every site-packages or dist-packages folder that this interpreter imports from."""
    site = [Path(folder) for folder in sys.path if Path(folder).name in _SITE_FOLDERS and Path(folder).is_dir()]
    return [_stdlib(), *dict.fromkeys(folder.resolve() for folder in site)]


def installed_files(roots: Collection[Path]) -> list[InstalledFile]:
    """Every Python source file below `roots`, sorted by place, with the package that it belongs to.

    A package is an installed distribution. Distributions that install into the same top-level folder, as those of a
    namespace do, are one package, named after the first of them; what no distribution's metadata names is its top-level
    folder or module. Of the standard library every top-level folder or module is one, `stdlib/json` for example.

    Left out: copies of other packages (folders named `_vendor`, `third_party` and the like), files that describe this
    machine, and this project itself, which changes with every commit. Where two roots hold the same place the first
    counts, as it does for Python.
    """
    package_of = _grouped(_tops_of_distributions(root for root in roots if root != _stdlib()))
    found: dict[str, InstalledFile] = {}
    for root in roots:
        prefix = "stdlib/" if root == _stdlib() else ""
        for path in _walk(root):
            relative = path.relative_to(root)
            top = relative.parts[0].removesuffix(".py")
            if top not in _NOBODYS and not any(part.startswith(_OURS) for part in relative.parts):
                place = prefix + relative.as_posix()
                package = prefix + top if prefix else package_of.get(top, top)
                found.setdefault(place, InstalledFile(package, place, path))
    return [found[place] for place in sorted(found)]


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib")).resolve()


def _walk(root: Path) -> Iterator[Path]:
    skipped = _SITE_FOLDERS | _VENDORED | {"__pycache__"}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped and is_portable(name)]
        yield from (Path(folder, name) for name in names if name.endswith(".py") and is_portable(name))


def _tops_of_distributions(roots: Iterable[Path]) -> dict[str, set[str]]:
    """The top-level folders and modules of every distribution, by its normalised name (PEP 503)."""
    tops_of: dict[str, set[str]] = {}
    for distribution in distributions(path=[str(root) for root in roots]):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if not name or name == _OURS:
            continue
        record = distribution.read_text("RECORD") or distribution.read_text("installed-files.txt")
        if record is not None:
            files = (line.partition(",")[0].strip('"') for line in record.splitlines())
            tops = {file.partition("/")[0].removesuffix(".py") for file in files if file.endswith(".py")}
        else:
            tops = set((distribution.read_text("top_level.txt") or "").split())
        tops_of.setdefault(name, set()).update(tops - _NOBODYS - {".."})
    return tops_of


def _grouped(tops_of: dict[str, set[str]]) -> dict[str, str]:
    """The package of each top-level name: distributions linked by names they share are one."""
    package_of: dict[str, str] = {}
    for name in sorted(tops_of):
        linked = {package_of[top] for top in tops_of[name] if top in package_of}
        first = min({name, *linked})
        package_of = {top: first if package in linked else package for top, package in package_of.items()}
        package_of.update(dict.fromkeys(tops_of[name], first))
    return package_of
