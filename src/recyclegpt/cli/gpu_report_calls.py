"""One measurement of a GPU report: a call of the program, what became of it, and the record that makes it resumable.

Every call is a process group of its own, so that one that crashes, runs out of memory or hangs takes nothing with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recyclegpt.cli.run_folder import write_json
from recyclegpt.errors import Stopped

FORMAT = 1
COMPLETE, FAILED, SKIPPED, STOPPED = "complete", "failed", "skipped", "stopped"
GRACE_S = 20.0
"""A training run that is told to stop writes a checkpoint first."""
STOPPED_BY = (128 + signal.SIGINT, 128 + signal.SIGTERM)
READING = 8000
"""Characters at the end of a log in which the reason of a failure is looked for."""


@dataclass(frozen=True)
class Call:
    """A command of the program, as part of a part."""

    part: str
    name: str
    argv: tuple[str, ...]
    """Of `recyclegpt`."""
    expected_s: float
    """What it is expected to take on an H200-class card; it is begun only if that is left."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What its rows are marked with: the shape, say."""
    reserve_s: float = 0.0
    """What it has to leave of the budget to those after it."""
    good: tuple[int, ...] = (0,)
    """Exit codes of a call that has come to its end."""

    @property
    def command(self) -> str:
        return " ".join(["recyclegpt", *self.argv])


@dataclass
class Record:
    """What became of a call: the content of `OUT/PART/NAME.json`."""

    part: str
    name: str
    status: str
    command: str
    seconds: float = 0.0
    error: str | None = None
    code: str = ""
    """Commit and changes it was measured at, device, and whether it was a smoke run."""
    facts: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] | None = None
    """The JSON object that it printed last."""
    format: int = FORMAT


@dataclass
class Finished:
    """How a process ended."""

    returncode: int | None
    """None: it was stopped at its limit."""
    stdout: str
    stderr: str


Runner = Callable[[Sequence[str], Path, float], Finished]
"""Runs the program: its arguments, a log to append to, and a limit in seconds."""


def record_path(out: Path, part: str, name: str) -> Path:
    """Where the record of a call lies."""
    return out / part / f"{name}.json"


def read_record(out: Path, part: str, name: str, code: str) -> Record | None:
    """The record of a call, if there is one of this code."""
    try:
        found = Record(**json.loads(record_path(out, part, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.format == FORMAT and found.code == code else None


def read_records(out: Path, part: str, code: str) -> list[Record]:
    """All records of a part, of this code."""
    found = (read_record(out, part, path.stem, code) for path in sorted((out / part).glob("*.json")))
    return [record for record in found if record is not None]


def is_done(found: Record, call: Call) -> bool:
    """Whether a call was measured already, with these very settings and of the same run."""
    same = {**found.facts, "note": None} == {**call.facts, "note": None}
    return same and (found.status, found.command) == (COMPLETE, call.command)


def carry_out(call: Call, out: Path, code: str, runner: Runner, limit_s: float) -> Record:
    """Run a call and leave its record; never raises for what goes wrong in it."""
    log = out / call.part / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {call.command}\n")
    record = Record(call.part, call.name, STOPPED, call.command, error="interrupted", code=code, facts=call.facts)
    begin = time.monotonic()
    try:
        done = runner(call.argv, log, limit_s)
        record.document = last_document(done.stdout)
        if done.returncode is None:
            record.error = f"stopped at its limit of {limit_s:.0f} s"
        elif done.returncode not in call.good:
            record.status, record.error = FAILED, reason(done)
        else:
            record.status, record.error = COMPLETE, None
    finally:  # of an interrupt too
        record.seconds = time.monotonic() - begin
        write_json(record_path(out, call.part, call.name), asdict(record))
    return record


def skip(call: Call, out: Path, code: str, why: str) -> Record:
    """A record of a call that was not begun. It does not take the place of what was measured with other settings."""
    record = Record(call.part, call.name, SKIPPED, call.command, error=why, code=code, facts=call.facts)
    if read_record(out, call.part, call.name, code) is None:
        write_json(record_path(out, call.part, call.name), asdict(record))
    return record


def last_document(stdout: str) -> dict[str, Any] | None:
    """The JSON object that is the whole output, or the last line that is one."""
    for line in [stdout, *reversed(stdout.splitlines())]:
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                found: dict[str, Any] = json.loads(line)
                return found
    return None


def reason(done: Finished) -> str:
    """Why a process failed, in a line: the signal that ended it, or the last thing it said."""
    if done.returncode is not None and done.returncode < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-done.returncode).name}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("- ")[:500] if lines else f"exit code {done.returncode}"


def in_a_process(argv: Sequence[str], log: Path, limit_s: float, program: Sequence[str] = ()) -> Finished:
    """Run the program in a process group of its own; `program` stands in for it in tests.

    At its limit the group is asked to stop, so that training writes a checkpoint, and killed after `GRACE_S`. The same
    when this process is interrupted.
    """
    command = [*(program or (sys.executable, "-m", "recyclegpt")), *argv]
    before = log.stat().st_size if log.exists() else 0
    with tempfile.TemporaryFile() as stdout, log.open("ab") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
        returncode: int | None = None
        try:
            returncode = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end_group(process)
        stdout.seek(0)
        printed = stdout.read().decode(errors="replace")
    with log.open("rb") as file:
        file.seek(before)
        told = file.read().decode(errors="replace")[-READING:]
    with log.open("a", encoding="utf-8") as file:
        file.write(printed)
    return Finished(returncode, printed, told)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Workers of a process that has ended may still be there; they hold memory of the device."""
    try:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
    finally:  # of a second Ctrl-C too
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended
        os.killpg(process.pid, number)


def in_this_process(argv: Sequence[str], log: Path, _limit_s: float) -> Finished:
    """Run the program here: what a smoke run does, to which the imports of ten processes would be most of the work."""
    from recyclegpt.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            returncode = main(argv)
        except Exception:
            returncode = 1
            traceback.print_exc()
    with log.open("a", encoding="utf-8") as file:
        file.write(err.getvalue() + out.getvalue())
    if returncode in STOPPED_BY:  # the program has answered a signal that was meant for all of this
        raise Stopped("stopped; the same command goes on", returncode)
    return Finished(returncode, out.getvalue(), err.getvalue()[-READING:])
