"""What a check found, how bad that is, and what to do about it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

INSTALL = "run `make` in the project's folder (it installs the locked versions)"


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Works, but not as it could, or may fail later."""
    PROBLEM = "problem"
    """Something does not work, or is dangerous."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    group: str
    name: str
    found: str
    verdict: Verdict = Verdict.OK
    remedy: str = ""
    """What to do about it; there is one exactly where the verdict is not ok."""

    def __post_init__(self) -> None:
        if bool(self.remedy) == (self.verdict is Verdict.OK):
            raise ValueError(f"{self.group}, {self.name}: a remedy belongs to a warning or a problem, and to no other")


Check = Callable[[], Finding | Iterable[Finding]]


def carry_out(group: str, name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check. One that fails is a finding too: nobody is helped by a doctor that falls over."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = check()
            findings = [found] if isinstance(found, Finding) else list(found)
    except ImportError as error:
        found_missing = f"could not be checked: {describe(error)}"
        findings = [Finding(group, name, found_missing, Verdict.PROBLEM, INSTALL)]
    except Exception as error:
        findings = [
            Finding(
                group,
                name,
                f"could not be checked: {describe(error)}",
                Verdict.WARNING,
                "see to the other findings first; if this one stays, report it with the output of "
                "`recyclegpt doctor --json`",
            )
        ]
    yield from findings


def describe(error: BaseException) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
