"""Whether the newest run, or every run, has ended well, and whether its checkpoints are what was written."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from recyclegpt.doctor import packages
from recyclegpt.doctor.finding import Finding, Verdict, carry_out, describe
from recyclegpt.errors import ConfigError

GROUP = "runs"
# As the rooms that write them name them. Importing those rooms imports Lightning, which may be what is ill.
PROVENANCE = "provenance.json"
RESULT = "result.json"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.json"
LOCK = ".lock"
DEFAULT = Path("outputs")


def find_runs(folder: Path) -> list[Path]:
    """The run folders in or below a folder, newest first."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        run = Path(place)
        if PROVENANCE in files or RESULT in files or (CHECKPOINTS in folders and _checkpoint_files(run)):
            found.append(run)
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found, key=_changed, reverse=True)


def newest_checkpoint_bytes(runs: list[Path]) -> int:
    """Size of the largest checkpoint of the newest run that has one; 0 where none has."""
    return next((max(_size(file) for file in files) for run in runs if (files := _checkpoint_files(run))), 0)


def examine(folder: Path, runs: list[Path], every: bool = False) -> Iterator[Finding]:
    """What is to say of the newest of `runs`, or of all of them."""
    if not folder.is_dir() and folder != DEFAULT:
        yield Finding(
            GROUP,
            "found",
            f"{folder} does not exist",
            Verdict.WARNING,
            "give the folder your runs are in, if there are any",
        )
        return
    if not runs:
        yield Finding(GROUP, "found", f"none below {folder}")
        return
    looked_at = runs if every else runs[:1]
    yield Finding(
        GROUP,
        "found",
        f"{len(runs)} below {folder}, {'all' if len(looked_at) == len(runs) else 'the newest'} looked at"
        + ("" if len(looked_at) == len(runs) else " (--all looks at every one)"),
    )
    for run in looked_at:
        group = f"run {run.relative_to(folder) if run != folder else run}"
        busy = is_running(run)
        yield from carry_out(group, "status", partial(status, group, run, busy))
        yield from carry_out(group, "checkpoints", partial(checkpoints, group, run, busy))
        yield from carry_out(group, "left over", partial(left_over, group, run, busy))
        yield from carry_out(group, "versions", partial(versions, group, run))


def status(group: str, run: Path, busy: bool) -> Finding:
    """Completed, failed, unfinished or running, by its `result.json`; and what goes on with it."""
    try:
        result = _read_object(run / RESULT)
    except FileNotFoundError:
        result = {}
    except (OSError, ValueError) as error:
        return Finding(
            group,
            "status",
            f"{RESULT} cannot be read ({describe(error)})",
            Verdict.PROBLEM,
            f"the run has to write it again: {how_to_continue(run)}",
        )
    if busy:
        return Finding(group, "status", "running: a process trains in this folder now")
    if result.get("status") == "completed":
        train = result.get("train")
        steps = train.get("steps") if isinstance(train, dict) else None
        return Finding(group, "status", f"completed after {steps} steps" if steps is not None else "completed")
    if not result:
        return Finding(
            group,
            "status",
            f"unfinished: it has no {RESULT}, as when it was killed, or runs on another machine",
            Verdict.WARNING,
            how_to_continue(run),
        )
    lines = [line.strip() for line in str(result.get("error") or "").splitlines() if line.strip()]
    where = ", see its traceback.txt" if (run / "traceback.txt").exists() else ""
    return Finding(
        group,
        "status",
        f"{result.get('status')}: {lines[-1].rstrip(': ') if lines else 'no error was recorded'}{where}",
        Verdict.WARNING,
        f"remove the cause if it was an error, then go on: {how_to_continue(run)}",
    )


def checkpoints(group: str, run: Path, busy: bool) -> Iterator[Finding]:
    """Each compared with the checksum beside it; and the tokenizer, without which none can be used."""
    files = _checkpoint_files(run)
    if not files:
        yield Finding(group, "checkpoints", "none")
        return
    if (release := packages.unsafe_to_import()) is not None:
        yield Finding(
            group,
            "checkpoints",
            f"not looked at: that would import {release}",
            Verdict.WARNING,
            f"remove {release} first, then look again",
        )
        return
    from recyclegpt.checkpoints.file import list_checkpoints, read_checkpoint, verify

    whole: list[Path] = []
    unsigned: list[Path] = []
    damaged: dict[Path, str] = {}
    for file in list_checkpoints(run / CHECKPOINTS):
        try:
            if verify(file):
                whole.append(file)
            else:
                read_checkpoint(file)
                unsigned.append(file)
        except ConfigError as error:
            if file.exists():  # a run that trains now removes old ones
                told = error.problems[0].removeprefix("checkpoint: ").rpartition("; ")
                damaged[file] = (told[0] or told[2]).replace(str(file), file.name)
    if whole:
        yield Finding(group, "checkpoints", f"{_steps(whole)}: as written")
    if unsigned:
        text = f"{_steps(unsigned)}: without a checksum; readable, but nobody can tell whether intact"
        if busy:
            yield Finding(group, "checkpoints", text)
        else:
            remedy = (
                "`recyclegpt evaluate checkpoint=RUN` shows whether a run has kept its quality; "
                "checkpoints that are written from now on have a checksum"
            )
            yield Finding(group, "checkpoints", text, Verdict.WARNING, remedy)
    sound = max([*whole, *unsigned], key=_step, default=None)
    for file, problem in damaged.items():
        if sound is None:
            remedy = f"none of its checkpoints can be used: move {run} away and train anew"
        else:
            remedy = (
                f"resume=auto and every command that is given the run folder pass over it and use step {_step(sound)}; "
                f"copy it again if there is a copy, else remove it: rm {shlex.quote(str(file))}*"
            )
        yield Finding(group, file.name, problem, Verdict.PROBLEM, remedy)
    if not (run / CHECKPOINTS / TOKENIZER).is_file():
        yield Finding(
            group,
            "tokenizer",
            f"{CHECKPOINTS}/{TOKENIZER} is missing, so no command can use these checkpoints",
            Verdict.PROBLEM,
            f"copy {TOKENIZER} from a run on the same data beside them; going on with the run writes it too",
        )


def left_over(group: str, run: Path, busy: bool) -> Iterator[Finding]:
    """Files of a process that was killed while it wrote."""
    if busy:
        return
    folders = (run, run / CHECKPOINTS)
    names = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|\.provenance\.json\.\d+")
    left = [file for folder in folders for file in folder.glob(".*") if names.fullmatch(file.name)]
    left += [file for file in (run / CHECKPOINTS).glob("*.ckpt.json") if not file.with_suffix("").exists()]
    if left:
        size = sum(_size(file) for file in left)
        count = f"{len(left)} temporary file{'' if len(left) == 1 else 's'}"
        names_of_all = " ".join(shlex.quote(str(file)) for file in sorted(left))
        yield Finding(
            group,
            "left over",
            f"{count} of a process that was killed while it wrote ({size / 1e6:,.1f} MB)",
            Verdict.WARNING,
            f"no process writes there now, remove them: rm {names_of_all}",
        )


def versions(group: str, run: Path) -> Iterator[Finding]:
    """Information: packages that have changed since the run."""
    recorded = _facts(run).get("versions")
    if not isinstance(recorded, dict):
        return
    changed = [
        f"{name} {before}, now {now}"
        for name, before in recorded.items()
        if name != "python" and before is not None and (now := packages.installed_version(name)) != before
    ]
    if changed:
        yield Finding(group, "versions", "changed since: " + "; ".join(changed))


def how_to_continue(run: Path) -> str:
    """The command that goes on with a run, as far as its provenance tells."""
    argv = _facts(run).get("argv")
    if not isinstance(argv, list) or len(argv) < 2 or argv[1] not in ("train", "adapt"):
        return f"the command that started it, with resume=auto hydra.run.dir={run}"
    words = [str(word) for word in argv[1:]]
    if any(word in ("-m", "--multirun") or word.startswith("sweep=") for word in words):
        if not any(word.startswith(("sweep=", "sweep.tag=", "hydra.sweep.dir=")) for word in words):
            words.append(f"sweep.tag={run.parent.name}")  # else it would begin a sweep of today
        if not any(word.startswith(("sweep=", "resume=")) for word in words):
            words.append("resume=auto")
        return shlex.join(["recyclegpt", *words])
    words = [word for word in words if not word.startswith(("resume=", "hydra.run.dir="))]
    return shlex.join(["recyclegpt", *words, "resume=auto", f"hydra.run.dir={_hydra_value(run)}"])


def is_running(run: Path) -> bool:
    """Whether a process holds the run's lock. The lock file is opened to read, and stays as it is."""
    try:
        import fcntl

        with (run / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ImportError):
        return False
    return False


def _facts(run: Path) -> dict[str, Any]:
    try:
        return _read_object(run / PROVENANCE)
    except FileNotFoundError:
        return {}


def _read_object(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not a JSON object")  # noqa: TRY004 - a bad file, as other bad JSON
    return document


def _hydra_value(path: Path) -> str:
    text = str(path)
    return text if re.fullmatch(r"[\w./-]+", text, re.ASCII) else "'" + text.replace("'", r"\'") + "'"


def _checkpoint_files(run: Path) -> list[Path]:
    return list((run / CHECKPOINTS).glob("step_*.ckpt"))


def _steps(files: list[Path]) -> str:
    steps = ", ".join(str(_step(file)) for file in sorted(files))
    return f"{len(files)} (step{'' if len(files) == 1 else 's'} {steps})"


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step_"))


def _changed(run: Path) -> float:
    """When a run last wrote one of its own files."""
    return max(_modified(path) for path in (run / PROVENANCE, run / RESULT, *_checkpoint_files(run)))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
