"""RecycleGPT models in `lm-eval` (EleutherAI's evaluation harness): translates requests and results.

`scoring.py` computes. No other file imports the harness.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import datasets

from recyclegpt.data.chat import encode_marked, mark, render_marked
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.decoding import SamplingConfig
from recyclegpt.errors import ConfigError
from recyclegpt.evaluation.perplexity import ratio_stderr
from recyclegpt.evaluation.scoring import Asked, BatchGenerator, Pair, Scored, Scorer

try:
    import lm_eval
    from lm_eval.api.group import Group
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.config.group import GroupConfig
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ConfigError(f"tasks: need lm-eval ({error}); pip install 'recyclegpt[eval]'") from error

MAX_NEW_TOKENS = 256
"""Of a task that names no `max_gen_toks`."""
_CUT = "\ufdd2"
"""Where a message ends that is to be continued; no text may hold this code point."""
_SUPPORTED = ("until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p")


class RecycleLM(TemplateLM):  # type: ignore[misc]  # it ships no types
    """One model under one scoring.

    Args:
        scorer: of the model; adapters of several scorings share it, so that every text is read once.
        chat: whether contexts are chats, rendered by the tokenizer's template (`apply_chat_template`).
    """

    def __init__(
        self,
        scorer: Scorer,
        tokenizer: TextTokenizer,
        scoring: str,
        generator: BatchGenerator | None = None,
        chat: bool = False,
    ) -> None:
        super().__init__()
        self.scorer, self.scoring, self.generator = scorer, scoring, generator
        # Not named `tokenizer`, where the harness looks for chat templates.
        self.text_tokenizer, self.chat = tokenizer, chat

    @property
    def tokenizer_name(self) -> str:
        return self.text_tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.text_tokenizer.chat.source if chat_template and self.text_tokenizer.chat is not None else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as `encode_marked` reads it; without a generation prompt the last message is continued.

        Raises:
            ConfigError: the template refuses it, even without a system message.
        """
        *earlier, last = chat_history
        if not add_generation_prompt:
            last = {**last, "content": last["content"] + _CUT}
        try:
            text = render_marked(self.text_tokenizer, [*earlier, last], add_generation_prompt)
        except ValueError as error:
            without = [message for message in chat_history if message["role"] != "system"]
            if len(without) == len(chat_history):
                raise ConfigError(f"apply_chat_template: {error}") from error
            return self.apply_chat_template(without, add_generation_prompt)
        return text.partition(_CUT)[0]

    @property
    def eot_token_id(self) -> int:
        return self.text_tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Precedes a text without context: the start token, or else the end token."""
        return self.text_tokenizer.encode_prompt("")[-1]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text with its start token, or of a part of one (`add_special_tokens=False`), or of a chat."""
        if self.chat:
            return encode_marked(self.text_tokenizer, string)
        is_part = add_special_tokens is False or not string
        return self.text_tokenizer.encode(string) if is_part else self.text_tokenizer.encode_prompt(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        answer = mark(self.text_tokenizer, continuation) if self.chat else continuation
        ids: tuple[list[int], list[int]] = super()._encode_pair(context, answer)
        return ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scored = self._score([Pair(tuple(context), tuple(text)) for _, context, text in requests])
        return [(one.log_likelihood, one.is_greedy) for one in scored]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Each text in windows that fill the context after one token; alternation restarts in each."""
        length = self.scorer.model.config.context_length
        pairs, owners = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.text_tokenizer.encode(request.args[0]), self.prefix_token_id, max_seq_len=length, context_len=1
            )
            for context, text in map(make_disjoint_window, windows):
                pairs.append(Pair(tuple(context), tuple(text)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, scored in zip(owners, self._score(pairs), strict=True):
            totals[number] += scored.log_likelihood
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        assert self.generator is not None, "needed where `TaskSet.generative` is not empty"
        return self.generator.write([(request.args[0], asked(request.args[1])) for request in requests])

    def _score(self, pairs: Sequence[Pair]) -> list[Scored]:
        return [scored[self.scoring] for scored in self.scorer.score(pairs)]


def asked(settings: Mapping[str, Any]) -> Asked:
    """How a task wants its text generated: greedily without `do_sample`, whatever its temperature.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    if unknown := [key for key, value in settings.items() if key not in _SUPPORTED and value not in (None, False, 1)]:
        raise ConfigError(f"tasks: generation_kwargs: {', '.join(unknown)} are not supported; leave them out")
    until = settings.get("until") or []
    stop = tuple(string for string in ([until] if isinstance(until, str) else until) if string)
    most = settings.get("max_gen_toks") or settings.get("max_new_tokens") or MAX_NEW_TOKENS
    given = {key: settings[key] for key in ("temperature", "top_k", "top_p", "min_p") if settings.get(key) is not None}
    return Asked(int(most), stop, SamplingConfig(**({"temperature": 1.0} | given if settings.get("do_sample") else {})))


@dataclass
class TaskSet:
    items: list[Any] = field(default_factory=list)
    """The harness's own, in the order requested."""
    names: list[str] = field(default_factory=list)
    """Of all groups and tasks, each group before its members."""
    generative: set[str] = field(default_factory=set)
    """Names of tasks that need generated text."""
    summed_up: set[str] = field(default_factory=set)
    """Names of tasks that their group aggregates."""


def find_tasks(wanted: Sequence[str | dict[str, Any]], folder: str | Path | None = None) -> TaskSet:
    """Tasks by name, from a folder of task files or from the harness, or as mappings (`local_tasks.py`).

    The harness's own thousands are indexed only if the folder lacks a name.

    Raises:
        ConfigError: a name is unknown, or a task's data cannot be read.
    """
    names = {task for task in wanted if isinstance(task, str)}
    include = None if folder is None else str(Path(folder).expanduser())
    if include is not None and not Path(include).is_dir():
        raise ConfigError(f"tasks_path: {folder} is not a folder; give one with task files (.yaml)")
    with _quiet():
        manager = TaskManager(include_path=include, include_defaults=False)
        if names - manager.task_index.keys():
            manager = TaskManager(include_path=include)
        if unknown := sorted(names - manager.task_index.keys()):
            remedy = "set tasks_path=FOLDER for your own task files"
            raise ConfigError(
                [f"tasks: {name!r} is neither among lm-eval's nor in tasks_path; {remedy}" for name in unknown]
            )
        found = TaskSet()
        for task in wanted:
            try:
                loaded = manager.load([task if isinstance(task, str) else _made(task)])
            except Exception as error:  # readers, templates and the hub raise anything
                name = task if isinstance(task, str) else task.get("group", task.get("task"))
                reason = " ".join(str(error).split())
                raise ConfigError(f"tasks: {name}: cannot be read ({type(error).__name__}: {reason})") from error
            groups, leaves = loaded.get("groups", {}), loaded["tasks"]
            inside = {child for group in groups.values() for child in group.child_names}
            found.items += [group for name, group in groups.items() if name not in inside]
            found.items += [leaf for name, leaf in leaves.items() if name not in inside]
            found.names += [*groups, *leaves]
            found.generative |= {name for name, leaf in leaves.items() if leaf.OUTPUT_TYPE == "generate_until"}
            found.summed_up |= {
                leaf.task_name for group in groups.values() if group.has_aggregation for leaf in group.get_all_tasks()
            }
    return found


def run_tasks(
    tasks: TaskSet, model: RecycleLM, bootstrap_iters: int = 1000, seed: int = 0, **settings: Any
) -> dict[str, dict[str, Any]]:
    """The harness's results under one scoring; `settings` are more of `lm_eval.simple_evaluate`.

    Returns:
        By name of a task or group: `num_samples`, and `metrics`, each `{"value", "stderr"}` (None if there is none).
    """
    with _quiet():
        results = lm_eval.simple_evaluate(
            model=model, tasks=list(tasks.items), task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=bootstrap_iters, **settings,
            random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    by_name = {**results["results"], **results.get("groups", {})}
    for name in tasks.names:
        if metrics := _metrics(by_name.get(name, {})):
            if bootstrap_iters:
                _add_stderr_of_ratios(metrics, results.get("samples", {}).get(name, []))
            found[name] = {"num_samples": by_name[name].get("sample_len"), "metrics": metrics}
    return found


def _made(task: Mapping[str, Any], prefix: str = "") -> Any:
    """The harness's task or group from a mapping; members are named `group::member`."""
    if "group" not in task:
        return ConfigurableTask(config={**task, "task": prefix + task["task"]})
    name = prefix + task["group"]
    group = Group.from_config(GroupConfig(**{**task, "group": name, "task": []}))
    for member in task["task"]:
        group.add(_made(member, f"{name}::"))
    return group


def _metrics(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        metric, comma, how = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            stderr = values.get(f"{metric}_stderr,{how}")
            found[metric if how == "none" else f"{metric} ({how})"] = {
                "value": float(value),
                "stderr": float(stderr) if isinstance(stderr, (int, float)) else None,
            }
    return found


def _add_stderr_of_ratios(metrics: Mapping[str, dict[str, Any]], samples: Sequence[Mapping[str, Any]]) -> None:
    """The harness has no standard error for perplexities of whole texts; add one."""
    for metric, found in metrics.items():
        error = ratio_stderr([sample[metric] for sample in samples if isinstance(sample.get(metric), tuple)])
        if found["stderr"] is None and error is not None:
            # That of exp(x) is exp(x) times that of x; that of bits is that of nats over ln 2.
            found["stderr"] = error / math.log(2) if metric.startswith("bits") else found["value"] * error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep standard output for our own table, and the harness from forking and from calling the hub."""
    with (
        # `datasets` reports the reading of local files too, and waits seconds for each without a network.
        mock.patch.object(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False),
        # Bootstrap in this process: forking one whose libraries have threads may hang.
        mock.patch.dict(os.environ, DISABLE_MULTIPROC="1"),
        contextlib.redirect_stdout(sys.stderr),
    ):
        yield
