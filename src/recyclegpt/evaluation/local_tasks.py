"""Benchmarks from files on this disk: BLiMP's pairs and WikiText's articles, as tasks that `lm-eval` understands.

A task is a plain mapping here; its rows are read before anything is evaluated, so that a bad file is named at once.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from recyclegpt.errors import ConfigError

Task = dict[str, Any]
BLIMP = "blimp_local"
WIKITEXT = "wikitext_local"
GOOD, BAD = "sentence_good", "sentence_bad"
_TITLE = re.compile(r" = [^=](.*[^=])? = ")
"""The line that begins an article: one equals sign on either side. Sections have two or more."""
_MOST_NAMED = 12


def blimp(folder: str | Path) -> Task:
    """The group of all BLiMP files of a folder (Warstadt et al., arXiv 1912.00582), by linguistic phenomenon.

    Each file holds pairs of sentences; `acc` is the share of pairs whose acceptable one is the more likely.

    Raises:
        ConfigError: no such folder, no file in it, or lines that are no pairs; naming each file and line.
    """
    folder = Path(folder).expanduser()
    if folder.suffix == ".zip" and folder.is_file():
        raise ConfigError(
            f"task_files.{BLIMP}: {folder} is an archive; give the folder that comes out of it: "
            f"unzip {shlex.quote(str(folder))}"
        )
    files = sorted(path for path in folder.rglob("*.jsonl") if not _hidden(path.relative_to(folder)))
    if not files:
        raise ConfigError(
            f"task_files.{BLIMP}: {folder} is no folder that holds .jsonl files; give BLiMP's data folder"
        )
    by_phenomenon: dict[str, list[Task]] = defaultdict(list)
    problems: list[str] = []
    for file in files:
        pairs, before = [], len(problems)
        for number, line in enumerate(_lines(file, f"task_files.{BLIMP}"), start=1):
            if line.strip():
                pair = _pair(line)
                if pair is None:
                    problems.append(f"task_files.{BLIMP}: {file}:{number}: is no JSON object with {GOOD} and {BAD}")
                else:
                    pairs.append(pair)
        if not pairs and len(problems) == before:
            problems.append(f"task_files.{BLIMP}: {file}: holds no pairs; take it out of the folder")
        if pairs:
            phenomenon = str(pairs[0].get("linguistics_term") or "other")
            by_phenomenon[phenomenon].append(_blimp_task(file.stem, pairs))
    _refuse(problems)
    mean = {"aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}]}
    groups = [{"group": name, "task": tasks} | mean for name, tasks in sorted(by_phenomenon.items())]
    return {"group": BLIMP, "task": groups, "metadata": {"version": 1.0}} | mean


def _hidden(path: Path) -> bool:
    """Whether an operating system put it beside the user's files (`__MACOSX` and `._one.jsonl` of archives)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def wikitext(files: str | Sequence[str]) -> Task:
    """The articles of WikiText files (Merity et al., arXiv 1609.07843), each scored whole by rolling windows.

    Perplexities are per word, per byte and in bits per byte of the text as the files have it, their blanks around
    punctuation and `<unk>` included: what is scored is what is counted.

    Raises:
        ConfigError: a file is missing, or holds no text.
    """
    paths = [Path(path).expanduser() for path in ([files] if isinstance(files, str) else files)]
    problems: list[str] = []
    pages: list[str] = []
    for path in paths:
        try:
            found = articles("".join(_lines(path, f"task_files.{WIKITEXT}")))
        except ConfigError as error:
            problems += error.problems
            continue
        if not found:
            problems.append(f"task_files.{WIKITEXT}: {path} holds no text; give a raw text file of WikiText")
        pages += found
    if not paths:
        problems.append(f"task_files.{WIKITEXT}: no file; give raw text files of WikiText")
    _refuse(problems)
    return rolling_task(WIKITEXT, pages)


def rolling_task(name: str, pages: Sequence[str]) -> Task:
    """Perplexities of whole texts, each by itself."""
    return {
        "task": name,
        "custom_dataset": _dataset([{"page": page} for page in pages]),
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [
            {"metric": metric, "aggregation": aggregation, "higher_is_better": False}
            for metric, aggregation in (
                ("word_perplexity", "weighted_perplexity"),
                ("byte_perplexity", "weighted_perplexity"),
                ("bits_per_byte", "bits_per_byte"),
            )
        ],
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }


def articles(text: str) -> list[str]:
    """Cut the text of a WikiText file before every title; what is blank is left out."""
    pages: list[list[str]] = [[]]
    for line in re.split(r"(?<=\n)", text):  # `splitlines` would cut at U+2028 and its like
        if _TITLE.fullmatch(line.rstrip("\n").rstrip() + " "):
            pages.append([])
        pages[-1].append(line)
    return [page for page in map("".join, pages) if page.strip()]


LOCAL: Mapping[str, Callable[[Any], Task]] = {BLIMP: blimp, WIKITEXT: wikitext}
"""Name of a task: what makes it from the files that the user names."""


def _blimp_task(name: str, pairs: list[dict[str, Any]]) -> Task:
    return {
        "task": name,
        "custom_dataset": _dataset([{GOOD: pair[GOOD], BAD: pair[BAD]} for pair in pairs]),
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": f"{{{{[{GOOD}, {BAD}]}}}}",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _dataset(rows: list[dict[str, str]]) -> Callable[..., dict[str, datasets.Dataset]]:
    def load(**_: Any) -> dict[str, datasets.Dataset]:
        return {"test": datasets.Dataset.from_list(rows)}

    return load


def _pair(line: str) -> dict[str, Any] | None:
    try:
        pair = json.loads(line)
    except ValueError:
        return None
    if not isinstance(pair, dict) or not all(isinstance(pair.get(key), str) and pair[key] for key in (GOOD, BAD)):
        return None
    return pair


def _lines(path: Path, key: str) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return list(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} cannot be read as UTF-8 text ({error})") from error


def _refuse(problems: list[str]) -> None:
    if len(problems) > _MOST_NAMED:
        problems = [*problems[:_MOST_NAMED], f"task_files: and {len(problems) - _MOST_NAMED} more problems"]
    if problems:
        raise ConfigError(problems)
