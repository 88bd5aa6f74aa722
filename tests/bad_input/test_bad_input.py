"""Every malformed input ends in one message that names the key or file: no traceback, no side effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_run import run_in

from . import checkpoint_cases, command_cases, config_cases, data_cases
from .place import CORPUS, MARKER, REFUSED, Case, Place, snapshot

CASES = [*checkpoint_cases.CASES, *config_cases.CASES, *data_cases.CASES, *command_cases.CASES]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.timeout(60)
def test_bad_input(case: Case, base: Path, corpus: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, base)
    place.copy(*case.copies)
    case.prepare(place)
    before = snapshot(tmp_path)
    code, text = run_in(tmp_path, [argument.replace(CORPUS, str(corpus)) for argument in case.argv])
    after = snapshot(tmp_path)
    assert "Traceback" not in text, text
    assert not (tmp_path / MARKER).exists(), "the payload has run"
    assert code == case.code, text
    report = tmp_path / "report/report.md"
    text += report.read_text(encoding="utf-8") if report.exists() else ""
    missing = [word for word in case.words if word not in text]
    assert not missing, f"{missing} not in: {text}"
    if case.code == REFUSED:
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        changed.discard("run/train.log")  # why a run was not resumed stands in its own log
        assert not changed, f"{text}\nleft behind or changed: {sorted(changed)}"
