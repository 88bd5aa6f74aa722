"""Arguments of the other commands, and what `report` reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from .case import Cases
from .config_cases import BOMB
from .place import MARKER, Place

CASES = Cases("commands")
REPORTS = Cases("report")
GENERATE = ("generate", "checkpoint=run", "--prompt", "def")


def _generate(name: str, argv: Sequence[str], *words: str) -> None:
    @CASES.refused(f"generate: {name}", *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("run")
        return argv


def _command(name: str, argv: Sequence[str], *words: str) -> None:
    @CASES.refused(f"{argv[0]}: {name}", *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("corpus")
        return argv


_generate(
    "a prompt longer than the context", ("generate", "checkpoint=run", "--prompt", "def " * 300), "the context holds 64"
)
_generate(
    "a prompt with half a surrogate pair", ("generate", "checkpoint=run", "--prompt", "a\udcffb"), "prompt", "UTF-8"
)
_generate("an unknown strategy", (*GENERATE, "decoding.strategy=magic"), "decoding.strategy", "magic")
_generate("a negative number of tokens", (*GENERATE, "decoding.max_new_tokens=-3"), "max_new_tokens", "-3")
_generate("a negative temperature", (*GENERATE, "decoding.temperature=-1"), "decoding.temperature", "-1")
_generate("a temperature that is no number", (*GENERATE, "decoding.temperature=nan"), "decoding.temperature", "nan")
_generate("a share of zero", (*GENERATE, "decoding.top_p=0"), "decoding.top_p")
_generate(
    "more recycled tokens than there are positions for", (*GENERATE, "decoding.num_recycled=99"), "num_recycled", "99"
)
_generate("an unknown dtype", (*GENERATE, "decoding.dtype=float3"), "decoding.dtype", "float3")
_generate("an unknown device", (*GENERATE, "device=abacus"), "device", "abacus")
_generate(
    "no prompt file", ("generate", "checkpoint=run", "--prompt-file", "nowhere.txt"), "--prompt-file", "nowhere.txt"
)
_generate("a folder as the prompt file", ("generate", "checkpoint=run", "--prompt-file", "run"), "--prompt-file", "run")
_generate("two prompts", (*GENERATE, "--prompt-file", "x"), "--prompt-file", "not allowed with")
_generate("an unknown option", (*GENERATE, "--loud"), "--loud")
_generate("an unknown key", (*GENERATE, "decoding.strategi=x"), "decoding.strategi", "did you mean decoding.strategy?")


@CASES.refused("generate: a prompt file that is not UTF-8", "--prompt-file", "bad.txt", "UTF-8")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    place.write("bad.txt", b"caf\xe9")
    return ("generate", "checkpoint=run", "--prompt-file", "bad.txt")


@CASES.tolerated("generate: an empty prompt file begins a document")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    place.write("empty.txt", b"")
    return ("generate", "checkpoint=run", "--prompt-file", "empty.txt", "decoding.max_new_tokens=4")


_command("no checkpoint", ("evaluate",), "checkpoint: outputs/train does not exist")
_command(
    "a text in place of a checkpoint", ("evaluate", "checkpoint=corpus/part0.txt"), "corpus/part0.txt", "cannot be read"
)
_command("an unknown dtype", ("evaluate", "checkpoint=corpus", "dtype=float3"), "dtype", "float3")
_command("a checkpoint that is a number", ("evaluate", "checkpoint=5"), "checkpoint: 5 is not a string")
_command("a seed that is a text", ("evaluate", "checkpoint=corpus", "seed=x"), "seed", "'x'")
_command(
    "negative numbers", ("bench", "bench.new_tokens=-1", "bench.batch=0"), "bench.new_tokens: -1", "bench.batch: 0"
)
_command("an unknown strategy", ("bench", "bench.strategies=[magic]"), "bench.strategies", "magic")
_command("a checkpoint that is not there", ("bench", "checkpoint=nowhere"), "nowhere", "does not exist")
_command("a folder without runs", ("bench", "runs=corpus"), "runs: corpus holds no complete run")
_command("a folder of runs that is not there", ("bench", "runs=nowhere"), "runs: nowhere", "no complete run")
_command("no folder to write to", ("tokenize", "data=text_files", "data.paths=[corpus]"), "output: has no value")
_command(
    "a folder to write to that is a number",
    ("tokenize", "data=text_files", "data.paths=[corpus]", "output=5"),
    "output: 5 is not a string",
)
_command(
    "a corpus that is not there",
    ("tokenize", "data=text_files", "data.paths=[nowhere]", "output=x"),
    "data.paths: 'nowhere' does not exist",
)
_command(
    "os.system as a corpus",
    ("tokenize", "data._target_=os.system", f"+data.command=touch {MARKER}", "output=x"),
    "os.system is not allowed",
)
_command(
    "a corpus of another kind",
    ("tokenize", "data={_target_: recyclegpt.models.RecycleConfig}", "output=x"),
    "data",
    "data.root: unknown key",
)
_command("an unknown command", ("trian",), "unknown command 'trian'", "did you mean train?")
_command("no folder", ("report",), "FOLDER")
_command("a folder that is not there", ("report", "nowhere"), "nowhere: there is no such folder")
_command("a file in place of a folder", ("report", "corpus/part0.txt"), "corpus/part0.txt")
_command("a folder without runs", ("report", "corpus"), "corpus: no runs found")
_command("a file as the place to write to", ("report", "corpus", "--output", "corpus/part0.txt"), "corpus")


@CASES.refused("report: a place to write to that cannot be written", "--output", "corpus/part0.txt")
def _(place: Place) -> Sequence[str]:
    place.copy("corpus", "run")
    return ("report", "run", "--output", "corpus/part0.txt")


# Damaged files of a run: the report is written, and names them ---------------------------------------------


def _damaged(name: str, file: str, content: str | bytes | None, *words: str) -> None:
    @REPORTS.tolerated(name, "unreadable files", file, *words)
    def _(place: Place) -> Sequence[str]:
        place.copy("run")
        if content is None:
            (place.root / "run" / file).unlink()
            os.mkfifo(place.root / "run" / file)
        else:
            place.write(f"run/{file}", content)
        return ("report", "run", "--output", "out")


_damaged("a result that is not JSON", "result.json", "{", "cannot be read")
_damaged("a result that is not UTF-8", "result.json", b"\xff", "cannot be read")
_damaged("a result that is a list", "result.json", "[1]", "not a JSON object")
_damaged("a result nested without end", "result.json", "[" * 200_000, "cannot be read")
_damaged("a result that is a pipe", "result.json", None, "no regular file")
_damaged(
    "a result with metrics of a text", "result.json", '{"status": "completed", "metrics": "x"}', "metrics is no mapping"
)
_damaged("a result of an unknown status", "result.json", '{"status": "fine"}', "status is 'fine'")
_damaged("a provenance without bytes", "provenance.json", b"", "cannot be read")
_damaged("a config with a YAML bomb", ".hydra/config.yaml", BOMB, "aliases")
_damaged(
    "a config with a Python object",
    ".hydra/config.yaml",
    f"a: !!python/object/apply:os.system ['touch {MARKER}']\n",
    "python/object",
)
_damaged("a config that is not UTF-8", ".hydra/config.yaml", b"\xff\xfe", "cannot be read")
_damaged("a config nested without end", ".hydra/config.yaml", "[" * 20_000, "cannot be read")
_damaged("overrides that are a mapping", ".hydra/overrides.yaml", "a: 1\n", "holds no list of overrides")
_damaged("overrides that are no overrides", ".hydra/overrides.yaml", "- 'seed=[1'\n", "cannot be read")
_damaged("a measurement that is a list", "bench.json", "[]", "not a JSON object")
_damaged("a measurement with rows of a text", "bench.json", '{"rows": "x", "hardware": {}}')


def _result(name: str, change: Callable[[Any], Any]) -> None:
    @REPORTS.tolerated(name, "report.md")
    def _(place: Place) -> Sequence[str]:
        place.copy("run")
        place.change_json("run/result.json", change)
        return ("report", "run", "--output", "out")


_result("a result without metrics", lambda result: result.pop("metrics"))
_result("a result whose metrics are texts", lambda result: result["metrics"].update({"val/ppl_backbone": "low"}))
_result(
    "a result with a metric beyond any float", lambda result: result["metrics"].update({"val/ppl_backbone": 10**400})
)


@REPORTS.tolerated("an event file of garbage", "report.md")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    (event_file,) = (place.root / "run/tensorboard").glob("events.*")
    event_file.write_bytes(event_file.read_bytes()[:50] + b"\xff" * 400)
    return ("report", "run", "--output", "out")


@REPORTS.tolerated("an event file that is a pipe", "report.md")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    os.mkfifo(place.root / "run/tensorboard/events.out.tfevents.1")
    return ("report", "run", "--output", "out")


@REPORTS.tolerated("a list of jobs of garbage", "jobs.json", "unreadable files")
def _(place: Place) -> Sequence[str]:
    place.copy("run")
    place.write("jobs.json", '{"jobs": [5]}')
    return ("report", ".", "--output", "out")
