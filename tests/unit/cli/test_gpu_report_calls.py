"""Calls of a GPU report: a process that fails, hangs or is killed leaves a record and takes nothing with it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from recyclegpt.cli import gpu_report_calls as calls
from recyclegpt.cli.gpu_report_calls import Call, Finished, carry_out, in_a_process, is_done, read_record, skip

PYTHON = (sys.executable, "-S", "-c")


def call(script: str, **changes: object) -> Call:
    return Call(**{"part": "decode", "name": "depths", "argv": (script,), "expected_s": 1.0, **changes})  # type: ignore[arg-type]


def run(script: str, out: Path, limit_s: float = 30.0, **changes: object) -> calls.Record:
    return carry_out(call(script, **changes), out, "code", partial(in_a_process, program=PYTHON), limit_s)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_program_is_this_one(tmp_path: Path) -> None:
    done = in_a_process(["--version"], tmp_path / "log.txt", 60)
    assert done.returncode == 0
    assert done.stdout.startswith("recyclegpt ")


def test_a_call_that_ends_well_leaves_its_document(tmp_path: Path) -> None:
    script = "import sys; print('table'); print('{\"rows\": [1]}'); print('progress', file=sys.stderr)"
    record = run(script, tmp_path, facts={"shape": "gpt_125m"})
    assert (record.status, record.error, record.document) == ("complete", None, {"rows": [1]})
    found = read_record(tmp_path, "decode", "depths", "code")
    assert found == record
    assert is_done(record, call(script, facts={"shape": "gpt_125m"}))
    assert calls.read_records(tmp_path, "decode", "code") == [record]
    log = (tmp_path / "decode" / "log.txt").read_text()
    assert "$ recyclegpt import sys" in log
    assert "progress\ntable\n" in log


def test_a_record_holds_for_its_code_and_settings_alone(tmp_path: Path) -> None:
    record = run("print(1)", tmp_path)
    assert record.document is None
    assert read_record(tmp_path, "decode", "depths", "other code") is None
    assert read_record(tmp_path, "decode", "other", "code") is None
    assert not is_done(record, call("print(2)"))
    assert not is_done(record, call("print(1)", facts={"run": "complete"}))
    (tmp_path / "decode" / "depths.json").write_text("{")
    assert read_record(tmp_path, "decode", "depths", "code") is None
    skipped = skip(call("print(1)"), tmp_path, "code", "no time")
    assert (skipped.status, skipped.error) == ("skipped", "no time")
    assert not is_done(skipped, call("print(1)"))


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("raise MemoryError('CUDA out of memory')", "MemoryError: CUDA out of memory"),
        ("import sys; print('2 problems\\n  - device: none', file=sys.stderr); sys.exit(2)", "device: none"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
    ],
)
def test_a_failure_says_why(script: str, error: str, tmp_path: Path) -> None:
    record = run(script, tmp_path)
    assert (record.status, record.error) == ("failed", error)
    assert not is_done(record, call(script))
    assert calls.read_records(tmp_path, "decode", "code") == [record]


def test_an_exit_code_may_be_good(tmp_path: Path) -> None:
    record = run("import sys; print('{\\n \"a\": 1}'); sys.exit(1)", tmp_path, good=(0, 1))
    assert (record.status, record.document) == ("complete", {"a": 1})


def test_at_its_limit_the_whole_group_ends(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time; sleep = 'import time; time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', sleep]); print(child.pid, flush=True); time.sleep(60)"
    )
    begin = time.monotonic()
    done = in_a_process([script], tmp_path / "log.txt", 1.0, PYTHON)
    assert done.returncode is None
    assert time.monotonic() - begin < 10
    time.sleep(0.1)
    assert not alive(int(done.stdout))
    record = run("import time; time.sleep(60)", tmp_path, limit_s=0.5)
    assert (record.status, record.error) == ("stopped", "stopped at its limit of 0 s")


def test_one_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "GRACE_S", 0.2)
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    begin = time.monotonic()
    assert in_a_process([script], tmp_path / "log.txt", 1.0, PYTHON).returncode is None
    assert time.monotonic() - begin < 10


def test_an_interrupt_leaves_a_record_and_goes_on_up(tmp_path: Path) -> None:
    def interrupted(argv: Sequence[str], log: Path, limit_s: float) -> Finished:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(call("x"), tmp_path, "code", interrupted, 1.0)
    found = json.loads((tmp_path / "decode" / "depths.json").read_text())
    assert (found["status"], found["error"]) == ("stopped", "interrupted")
