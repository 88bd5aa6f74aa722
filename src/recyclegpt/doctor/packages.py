"""Installed packages beside the ranges this project asks for, and releases that are known to be bad.

All is read from the packages' metadata. None is imported here: importing a malicious release is what sets it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from recyclegpt import __version__
from recyclegpt.doctor.finding import INSTALL, Check, Finding, Verdict

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GROUP = "packages"
OPTIONAL = {
    "transformers": ("hf", "the outside baseline of `bench`, and models of the Hugging Face hub"),
    "lm-eval": ("eval", "standard evaluation tasks"),
    "matplotlib": ("report", "bench.png and the figures of reports"),
    "plotly": ("report", "interactive figures in report.html"),
    "hydra-joblib-launcher": ("sweep", "several jobs of a sweep at a time on one machine"),
    "hydra-submitit-launcher": ("sweep", "sweeps on a SLURM cluster"),
}
"""Package: the extra that brings it, and what it is for."""


@dataclass(frozen=True)
class KnownBad:
    """Releases of a package that nobody should use with this project, why, and who says so."""

    package: str
    versions: tuple[str, ...]
    """Version specifiers; any of them."""
    why: str
    source: str
    remedy: str
    verdict: Verdict = Verdict.WARNING

    def concerns(self, package: str, version: str) -> bool:
        """Whether a release is one of these."""
        from packaging.specifiers import SpecifierSet

        return package == self.package and any(
            SpecifierSet(specifier).contains(version, prereleases=True) for specifier in self.versions
        )


MALICIOUS = tuple(
    KnownBad(
        package,
        ("==2.6.2", "==2.6.3"),
        "a malicious release that steals credentials when it is imported",
        "GHSA-w37p-236h-pfx3",
        f"pip uninstall {package} at once, without importing it; then change every credential that could be read from "
        "this machine (tokens, SSH and cloud keys), and install the locked versions with `make`",
        Verdict.PROBLEM,
    )
    for package in ("lightning", "pytorch-lightning")
)
KNOWN_BAD = (
    *MALICIOUS,
    *(
        KnownBad(
            package,
            ("<2.6.6",),
            "load_from_checkpoint can be made to run code that a checkpoint names",
            "Lightning-AI/pytorch-lightning#21832, #21914",
            f"pip install '{package}>=2.6.6,<2.7'",
        )
        for package in ("lightning", "pytorch-lightning")
    ),
    KnownBad(
        "hydra-core",
        ("<1.3.4",),
        "instantiate() runs whatever a config names",
        "GHSA-2cp2-2r3c-7p7r",
        "pip install 'hydra-core>=1.3.8,<1.4'",
    ),
    KnownBad(
        "omegaconf",
        (">=2.4",),
        "Hydra 1.3 needs omegaconf below 2.4",
        "the requirements of hydra-core 1.3",
        "pip install 'omegaconf>=2.3.1,<2.4'",
        Verdict.PROBLEM,
    ),
    KnownBad(
        "datasets",
        ("<5.0.1",),
        "a stream resumed twice repeats data, and an archive can write outside of its folder",
        "huggingface/datasets#8295, #8303",
        "pip install 'datasets>=5.2,<6'",
    ),
    KnownBad(
        "datasets",
        (">=5.0.1,<5.2",),
        "shuffling loses the number of shards, so that workers get nothing",
        "huggingface/datasets#8669",
        "pip install 'datasets>=5.2,<6'",
    ),
)
"""The first entry that concerns a release is the one that is told."""


def installed_version(package: str) -> str | None:
    """Version of a package by its metadata; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def unsafe_to_import() -> str | None:
    """The installed release that must not be imported, if there is one."""
    for bad in MALICIOUS:
        version = installed_version(bad.package)
        if version is not None and bad.concerns(bad.package, version):
            return f"{bad.package} {version}"
    return None


def this_project() -> Finding:
    """Installed how, and in the version whose code runs."""
    recorded = installed_version("recyclegpt")
    if recorded is None:
        return Finding(
            GROUP,
            "recyclegpt",
            f"{__version__}, not installed: its code runs from a folder, and what it needs is not known",
            Verdict.WARNING,
            INSTALL,
        )
    if recorded != __version__:
        return Finding(
            GROUP,
            "recyclegpt",
            f"{__version__}, but its metadata says {recorded}",
            Verdict.WARNING,
            "pip install --no-deps -e . in the project's folder, so that the two agree again",
        )
    return Finding(GROUP, "recyclegpt", recorded)


def required() -> Iterator[Finding]:
    """Every direct dependency."""
    wanted = {requirement.name: requirement for requirement in _requirements("")}
    yield from (_judge(name, requirement) for name, requirement in wanted.items())
    # Without metadata of this project nothing is wanted, but a bad release is bad all the same.
    for name in dict.fromkeys(bad.package for bad in KNOWN_BAD if bad.package not in {*wanted, "pytorch-lightning"}):
        version = installed_version(name)
        if version is not None and (finding := _known_bad(name, version)) is not None:
            yield finding
    # Lightning brings it along, and it is as dangerous.
    version = installed_version("pytorch-lightning")
    if version is not None:
        lightning = installed_version("lightning")
        finding = _known_bad("pytorch-lightning", version)
        if finding is None and lightning not in (None, version):
            finding = Finding(
                GROUP,
                "pytorch-lightning",
                f"{version}, while lightning is {lightning}",
                Verdict.WARNING,
                f"pip install 'pytorch-lightning=={lightning}': the two belong together",
            )
        yield finding or Finding(GROUP, "pytorch-lightning", f"{version}, the same as lightning")


def optional() -> Iterator[Finding]:
    """What the extras bring."""
    extras = dict.fromkeys(extra for extra, _ in OPTIONAL.values())
    wanted = {requirement.name: requirement for extra in extras for requirement in _requirements(extra)}
    for name, (extra, purpose) in OPTIONAL.items():
        if installed_version(name) is None:
            yield Finding(GROUP, name, f"not installed (optional: {purpose}; pip install 'recyclegpt[{extra}]')")
        elif name in wanted:
            yield _judge(name, wanted[name])


def _judge(name: str, requirement: Requirement) -> Finding:
    version = installed_version(name)
    if version is None:
        return Finding(GROUP, name, f"missing (wants {_range(requirement)})", Verdict.PROBLEM, INSTALL)
    if (bad := _known_bad(name, version)) is not None:
        return bad
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(
            GROUP,
            name,
            f"{version}, outside of the tested range {_range(requirement)}",
            Verdict.WARNING,
            f"pip install '{name}{_range(requirement)}'",
        )
    return Finding(GROUP, name, f"{version} (wants {_range(requirement)})")


def _known_bad(name: str, version: str) -> Finding | None:
    for bad in KNOWN_BAD:
        if bad.concerns(name, version):
            return Finding(GROUP, name, f"{version}: {bad.why} ({bad.source})", bad.verdict, bad.remedy)
    return None


def _requirements(extra: str) -> list[Requirement]:
    """What the installed metadata asks for: always, or with one extra alone."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("recyclegpt") or []
    except metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [
        requirement
        for requirement in found
        if (requirement.marker is None and not extra)
        or (
            requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not (extra and requirement.marker.evaluate({"extra": ""}))
        )
    ]


def _range(requirement: Requirement) -> str:
    return readable(str(requirement.specifier)) or "any version"


def readable(specifiers: str) -> str:
    """Lower bounds first, `>=2.6.6,<2.7,!=2.6.2`; metadata has them in no order."""
    return ",".join(sorted(specifiers.split(","), key=lambda text: "><!".find(text[:1])))


CHECKS: dict[str, Check] = {"recyclegpt": this_project, "required": required, "optional": optional}
