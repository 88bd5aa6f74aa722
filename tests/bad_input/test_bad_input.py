"""Every malformed input ends in one clear message: no traceback, no side effect, nothing left out in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from .case import DONE, Case
from .cases import CASES
from .place import MARKER, Place, run_in, snapshot

SHARE = 6
"""Every so many-th case runs by default, which keeps the suite quick; the others with `-m slow`."""
ALWAYS = ("os.system", "malicious", "runs a command", "payload", "outside", "bomb", "removes a file", "vocabulary")
"""Words of names that run by default whatever their place: where the harm would be greatest."""


def _parameter(number: int, case: Case) -> object:
    by_default = number % SHARE == 0 or any(word in case.name for word in ALWAYS)
    marks = [] if by_default else [pytest.mark.slow]
    return pytest.param(case, id=f"{case.category}: {case.name}"[:80].encode("unicode_escape").decode(), marks=marks)


@pytest.mark.parametrize("case", [_parameter(*numbered) for numbered in enumerate(CASES)])
@pytest.mark.timeout(30)
def test_bad_input(case: Case, base: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, base)
    argv = case.prepare(place)
    before = snapshot(tmp_path)
    code, text = run_in(tmp_path, argv)
    after = snapshot(tmp_path)
    assert "Traceback" not in text, text
    assert not (tmp_path / MARKER).exists(), "the payload has run"
    assert code == case.code, text
    listed = text + _report(tmp_path / "out/report.md")
    missing = [word for word in case.words if word not in listed]
    assert not missing, f"{missing} not in: {text}"
    if case.code != DONE:
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert not changed, f"{text}\nleft behind or changed: {sorted(changed)}"
    elif argv[0] == "train":
        assert "run folder: " in text


def _report(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def test_there_are_at_least_a_hundred_and_no_two_share_a_name() -> None:
    names = [(case.category, case.name) for case in CASES]
    assert len(names) >= 100
    assert len(set(names)) == len(names)
