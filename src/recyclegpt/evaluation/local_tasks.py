"""BLiMP and WikiText from local files: the lm-eval tasks of `tasks/*.yaml`, filled with the rows of those files."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml

from recyclegpt.errors import ConfigError

Task = dict[str, Any]
"""A task or group as lm-eval's YAML files spell it."""
BLIMP, WIKITEXT = "blimp_local", "wikitext_local"
_TITLE = re.compile(r" = [^=](.*[^=])? = ")
"""The line that begins an article: one equals sign on either side. Sections have two or more."""


def blimp(folder: str | Path) -> Task:
    """The group of all BLiMP files of a folder, by linguistic phenomenon.

    Raises:
        ConfigError: the folder has no `.jsonl` files, or one of them holds no pairs of sentences.
    """
    folder = Path(folder).expanduser()
    files = sorted(
        path
        for path in folder.rglob("*.jsonl")  # an archive may hold `__MACOSX` and `._one.jsonl`
        if not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
    )
    if not files:
        raise ConfigError(f"task_files.{BLIMP}: {folder} has no .jsonl files; give BLiMP's unzipped data folder")
    by_phenomenon: dict[str, list[Task]] = defaultdict(list)
    for file in files:
        try:
            pairs = [json.loads(line) for line in _read(file, BLIMP).split("\n") if line.strip()]
            rows = [{key: str(pair[key]) for key in ("sentence_good", "sentence_bad")} for pair in pairs]
            phenomenon = str(pairs[0].get("linguistics_term") or "other")
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ConfigError(f"task_files.{BLIMP}: {file} does not hold pairs of sentences ({error})") from error
        by_phenomenon[phenomenon].append(_task("blimp", file.stem, rows))
    mean = {"aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}]}
    groups = [{"group": name, "task": tasks} | mean for name, tasks in sorted(by_phenomenon.items())]
    return {"group": BLIMP, "task": groups, "metadata": {"version": 1.0}} | mean


def wikitext(files: str | Sequence[str]) -> Task:
    """The articles of raw WikiText files.

    Raises:
        ConfigError: a file cannot be read, or holds no text.
    """
    paths = [files] if isinstance(files, str) else files
    pages = [page for path in paths for page in articles(_read(Path(path).expanduser(), WIKITEXT))]
    if not pages:
        raise ConfigError(f"task_files.{WIKITEXT}: {', '.join(paths)} holds no text; give raw text files of WikiText")
    return rolling_task(WIKITEXT, pages)


def rolling_task(name: str, pages: Sequence[str]) -> Task:
    """Perplexities of whole texts, each by itself."""
    return _task("wikitext", name, [{"page": page} for page in pages])


def articles(text: str) -> list[str]:
    """Split the text of a WikiText file before every title; blank parts are left out."""
    pages: list[list[str]] = [[]]
    for line in re.split(r"(?<=\n)", text):  # `splitlines` would also split at U+2028 and the like
        if _TITLE.fullmatch(line.rstrip("\n").rstrip() + " "):
            pages.append([])
        pages[-1].append(line)
    return [page for page in map("".join, pages) if page.strip()]


LOCAL: Mapping[str, Callable[[Any], Task]] = {BLIMP: blimp, WIKITEXT: wikitext}
"""Name of a task: what builds it from the user's files."""


def _task(template: str, name: str, rows: list[dict[str, str]]) -> Task:
    def load(**_: Any) -> dict[str, datasets.Dataset]:
        return {"test": datasets.Dataset.from_list(rows)}

    text = (Path(__file__).parent / "tasks" / f"{template}.yaml").read_text(encoding="utf-8")
    return {"task": name, "custom_dataset": load, **yaml.safe_load(text)}


def _read(path: Path, task: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"task_files.{task}: {path} cannot be read as UTF-8 text ({error})") from error
