"""`recyclegpt gpu-report`: everything that wants a GPU, measured in one go and told in one report."""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from recyclegpt import __version__
from recyclegpt.callbacks.provenance import git_state
from recyclegpt.cli.compose import PACKAGE, compose_or_explain, find_conf
from recyclegpt.cli.console import print_table
from recyclegpt.cli.gpu_report_calls import (
    COMPLETE,
    FAILED,
    STOPPED,
    Call,
    Runner,
    carry_out,
    in_a_process,
    in_this_process,
    is_done,
    read_record,
    read_records,
    skip,
)
from recyclegpt.cli.gpu_report_document import make_document
from recyclegpt.cli.gpu_report_measure import MEASURES
from recyclegpt.cli.gpu_report_parts import PARTS, Setting
from recyclegpt.cli.run_folder import finite, write_json
from recyclegpt.cli.settings import many, type_problems
from recyclegpt.errors import ConfigError, RunError, Stopped
from recyclegpt.reporting.gpu_report import FILE_NAME, SMOKE, read_gpu_report, write_gpu_report
from recyclegpt.reporting.gpu_targets import gpu_targets

HELP = """usage: recyclegpt gpu-report [KEY=VALUE ...]

Measure decoding, training and a trained model on a CUDA device, in ten minutes, and write a report: out/report.json,
report.md, report.html, tables and figures. Settings: out, budget_s, train_s,
parts=[environment,checks,kernels,decode,training,train,trained]; smoke=true device=cpu tries all of it with tiny
shapes. Started again it goes on where it stopped: what is complete, of the same commit and settings, is not measured
again. See docs/gpu.md."""

TYPES = {
    "out": str, "parts": str | list[str], "device": str, "budget_s": float, "train_s": float, "smoke": bool,
    "measure": str | None, "commit": str | None,
}  # fmt: skip
DEVICES = ("cuda", "cpu")
PATIENCE = 3.0
"""A call may take so many times what it is expected to take, and `LEAST_LIMIT_S` in any case."""
LEAST_LIMIT_S = 180.0


def run(argv: Sequence[str]) -> int:
    """The command."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(HELP)
        return 0
    cfg = compose_or_explain("gpu_report", list(argv))
    if problems := setting_problems(cfg):
        raise ConfigError(problems)
    if cfg.measure is not None:
        print(json.dumps(finite(MEASURES[cfg.measure](torch.device(cfg.device), cfg.smoke))))
        return 0
    command = shlex.join(["recyclegpt", "gpu-report", *argv])
    report(cfg, command, in_this_process if cfg.smoke else in_a_process)
    return 0


def setting_problems(cfg: DictConfig) -> list[str]:
    """All that is wrong with the settings."""
    problems = type_problems(cfg, TYPES)
    if problems:
        return problems
    problems += [
        f"parts: {name!r} is unknown; there are {', '.join(PARTS)}" for name in many(cfg.parts) if name not in PARTS
    ]
    problems += [f"{key}: {cfg[key]} is not positive" for key in ("budget_s", "train_s") if not cfg[key] > 0]
    if cfg.measure is not None and cfg.measure not in MEASURES:
        problems.append(f"measure: {cfg.measure!r} is unknown; there are {', '.join(MEASURES)}")
    if cfg.device not in DEVICES:
        problems.append(f"device: {cfg.device!r} is neither {' nor '.join(DEVICES)}")
    elif cfg.device == "cuda" and not torch.cuda.is_available():
        problems.append(
            "device: torch sees no CUDA device (`recyclegpt doctor` says more); run this where there is one, or try "
            "all of it with tiny shapes on the CPU: device=cpu smoke=true"
        )
    elif cfg.device == "cpu" and not cfg.smoke:
        problems.append("device: these shapes take hours on a CPU; add smoke=true, or compare with `make bench`")
    return problems


def report(
    cfg: DictConfig, command: str, runner: Runner, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Measure what is asked for and not there yet, then write the report, of an interrupted start as well.

    Raises:
        ConfigError: the folder cannot be written.
        RunError: calls failed; the others ran to their end, and the report says which.
    """
    out = Path(cfg.out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        with lock.acquire(timeout=0):
            return _report(cfg, out, command, runner, clock)
    except Timeout as error:
        raise ConfigError(
            f"out: another start measures in {out}; two at once would measure each other. Wait for it, or stop it"
        ) from error
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written ({error})") from error


def _report(cfg: DictConfig, out: Path, command: str, runner: Runner, clock: Callable[[], float]) -> dict[str, Any]:
    begin, git = clock(), git_state(Path(__file__))
    # A smoke run's records are no measurements, wherever they lie.
    code = " ".join([code_now(git), cfg.device, *(["smoke"] if cfg.smoke else [])])
    setting = Setting(
        out, cfg.device, cfg.smoke, cfg.budget_s, cfg.train_s, code, left_s=lambda: cfg.budget_s - clock() + begin
    )
    about: dict[str, Any] = {"smoke": cfg.smoke, "command": command, "version": __version__, "budget_s": cfg.budget_s}
    about["code"], about["commands"] = code, _commands_so_far(out, code, command)
    about["git"] = {"commit": cfg.commit, "dirty": None, "diff_sha256": None} if git is None else git
    asked = [part for part in PARTS if part in many(cfg.parts)]
    document: dict[str, Any] = {}
    try:
        with _sigterm_stops():
            for part, calls in PARTS.items():
                if part in asked:
                    for call in calls(setting):
                        _one(call, setting, runner)
                else:
                    setting.records |= {(part, record.name): record for record in read_records(out, part, code)}
    finally:
        document = make_document(PARTS, setting.records, about)
        write_json(out / FILE_NAME, document)
        written = write_gpu_report(out, out)
        if cfg.smoke:
            print(SMOKE)
        print_table(
            [(target.name, target.shown(target.value), target.shown(target.target), target.verdict)
             for target in gpu_targets(document["parts"])],
            header=("target", "measured", "wanted", "verdict"),
        )  # fmt: skip
        print(f"\nwritten to {out}: {', '.join(path.name for path in written.files)}")
    failed = [r for r in setting.records.values() if r.status in (FAILED, STOPPED) and r.part in asked]
    if failed:
        lines = [f"  - {record.part}, {record.name}: {record.error}" for record in failed]
        told = "\n".join([f"{len(failed)} measurements did not come to their end", *lines])
        raise RunError(f"{told}\nThe log of each lies in its part's folder; the same command runs them again.")
    return document


def _commands_so_far(out: Path, code: str, command: str) -> list[str]:
    """Of all starts of this code whose measurements the report holds."""
    try:
        before = read_gpu_report(out / FILE_NAME)
    except ConfigError:  # there is none
        return [command]
    return list(dict.fromkeys([*(before.get("commands", []) if before.get("code") == code else []), command]))


def _one(call: Call, setting: Setting, runner: Runner) -> None:
    """Run one call, if it is not measured yet and fits into what is left of the budget."""
    found = read_record(setting.out, call.part, call.name, setting.code)
    if found is not None and is_done(found, call):
        record, told = found, "was complete"
    elif call.expected_s > setting.left_s() and not setting.smoke:
        left_s = max(0.0, setting.left_s())
        why = f"needs about {call.expected_s:.0f} s, and {left_s:.0f} s are left of the budget; start again"
        record = skip(call, setting.out, setting.code, why)
        told = f"skipped: {why}"
    else:
        limit_s = min(setting.left_s() - call.reserve_s, max(PATIENCE * call.expected_s, LEAST_LIMIT_S))
        _tell(call, f"begun, {call.expected_s:.0f} s expected", setting)
        try:
            record = carry_out(call, setting.out, setting.code, runner, limit_s)
        except BaseException:  # an interrupt, which the report tells of as well
            if left := read_record(setting.out, call.part, call.name, setting.code):
                setting.records[call.part, call.name] = left
            raise
        told = f"{record.status} in {record.seconds:.0f} s" + (f": {record.error}" if record.status != COMPLETE else "")
    setting.records[call.part, call.name] = record
    _tell(call, told, setting)


def _tell(call: Call, text: str, setting: Setting) -> None:
    left = setting.left_s()
    times = f"[{setting.budget_s - left:3.0f} s, {left:3.0f} s left]"
    print(f"{times} {call.part}, {call.name}: {text}", file=sys.stderr, flush=True)


def code_now(git: Mapping[str, Any] | None) -> str:
    """What a record is valid for: the commit and the changes to it; without a repository, the program itself."""
    if git is not None:
        return f"{git['commit']}{'+' + git['diff_sha256'] if git['diff_sha256'] else ''}"
    digest = hashlib.sha256(__version__.encode())
    for path in [*sorted(PACKAGE.rglob("*.py")), *sorted(find_conf().rglob("*.yaml"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """SIGTERM ends the call that is running, and is told as an interrupt is; without it the call would run on."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM; the same command goes on", 128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
