"""What is written in more than one place says the same: versions in pyproject, lock, Makefile, conda and CI files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import recyclegpt

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
OF_THE_MACHINE = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
"""Packages that the lock leaves to torch's own installation."""


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def test_conda_environment_names_the_ranges_of_pyproject(pyproject: dict[str, Any]) -> None:
    conda = read_yaml("environment.yml")["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert f"python{pyproject['project']['requires-python']}" in conda
    assert pip[-1] == "-e .[dev]"
    named = requirements(pip[:-1])
    core = requirements(pyproject["project"]["dependencies"])
    assert str(named.pop("torch").specifier) == "==2.13.0"
    core.pop("torch")
    assert {name: str(r.specifier) for name, r in named.items()} == {n: str(r.specifier) for n, r in core.items()}


def test_one_version_of_torch(pyproject: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    version = re.search(r"^TORCH := torch==(\S+)$", makefile, re.MULTILINE)
    assert version
    (constraint,) = pyproject["tool"]["uv"]["constraint-dependencies"]
    assert constraint == f"torch=={version[1]}"
    assert pyproject["tool"]["uv"]["dependency-metadata"][0]["version"] == version[1]
    assert requirements(pyproject["project"]["dependencies"])["torch"].specifier.contains(version[1])


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_what_pyproject_asks_for(pyproject: dict[str, Any], python: str) -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index-url|--find-links|file:", text), "the lock names no index"
    machine = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    pins: dict[str, SpecifierSet] = {}
    for line in re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines():
        entry = Requirement(line.partition("--hash")[0])
        assert "--hash=sha256:" in line, entry
        assert not OF_THE_MACHINE.fullmatch(canonicalize_name(entry.name)), "torch is left to the machine"
        if entry.marker is None or entry.marker.evaluate(machine):
            pins[canonicalize_name(entry.name)] = entry.specifier
    project = pyproject["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *pyproject["build-system"]["requires"],
    ]
    for name, requirement in requirements(wanted).items():
        if name != "torch":
            (pin,) = pins[name]
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), f"{requirement} is locked at {pin}: run make lock"


@pytest.mark.parametrize("bad", ["2.6.2", "2.6.3"])
def test_malicious_releases_are_refused_by_name(pyproject: dict[str, Any], bad: str) -> None:
    assert f"!={bad}" in str(requirements(pyproject["project"]["dependencies"])["lightning"].specifier)


def test_supported_pythons_are_the_same_everywhere(pyproject: dict[str, Any]) -> None:
    supported = SpecifierSet(pyproject["project"]["requires-python"])
    assert [minor for minor in ("3.10", *PYTHONS, "3.14") if supported.contains(f"{minor}.1")] == list(PYTHONS)
    assert read_yaml(".github/workflows/ci.yml")["jobs"]["check"]["strategy"]["matrix"]["python"] == list(PYTHONS)


def test_citation_names_the_version() -> None:
    assert read_yaml("CITATION.cff")["version"] == recyclegpt.__version__
