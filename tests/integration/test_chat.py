"""A chat model is asked by its template, and its answer ends where the template ends one."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from recyclegpt.decoding import TextStreamer
from tests.chat_tokenizer import write_chat_tokenizer

Run = Callable[..., int]
QUESTION = "Why <|im_end|>?"


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return write_chat_tokenizer(tiny_checkpoint())


def test_every_way_to_ask_gives_one_answer(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"checkpoint={folder}", "decoding.strategy=autoregressive", "decoding.max_new_tokens=12"]

    def written(*options: str) -> str:
        assert run("generate", *settings[:2], *options, *settings[2:]) == 0
        return capsys.readouterr().out

    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": QUESTION}]}) + "\n")
    answer = written("--chat", QUESTION)
    assert answer.strip()
    assert written("--prompt", QUESTION, "--chat") == answer
    assert written("--prompt-file", str(tmp_path / "chat.jsonl")) == answer
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION))
    assert written("--chat") == answer, "what follows is a setting, not the question"
    assert written("--prompt", QUESTION, "--no-prompt") != answer, "without the template"
    assert run("generate", *settings, "--chat", "a", "--prompt", "b") == 2


def test_a_talk_keeps_its_turns(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"checkpoint={folder}", "decoding.drafter=ngram", "decoding.max_new_tokens=12"]

    def talk(*lines: str) -> tuple[list[str], str]:
        terminal = io.StringIO("\n".join(lines))
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        assert run("generate", *settings, "--chat") == 0
        printed = capsys.readouterr()
        return printed.out.split("> ")[1:], printed.err

    assert run("generate", *settings, "--chat", QUESTION) == 0
    alone = capsys.readouterr().out
    (first, second, _), told = talk(QUESTION, QUESTION, "/exit", "more")
    assert first == alone
    assert second != alone, "it does not see the turn before"
    assert told.count("tokens/s") == told.count("mean accepted length") == 2
    assert "oldest turns" not in told
    _, told = talk(*[QUESTION] * 6, "x" * 999, QUESTION)
    assert told.count("the oldest turns are left out") == 1
    assert told.count("tokens/s") == 7, "a question longer than the context is refused, and the talk continues"
    add, num = TextStreamer.add, [0]

    def interrupted(*arguments: Any) -> Any:
        num[0] += 1
        if num[0] == 5:
            raise KeyboardInterrupt
        return add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TextStreamer, "add", interrupted)
        (stopped, after, _), _ = talk(QUESTION, QUESTION, "")
    assert stopped != alone
    assert alone.startswith(stopped.rstrip("\n"))
    assert after not in (alone, second), "the part that was shown is a turn"
    (folder / "tokenizer_config.json").unlink()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert run("generate", *settings, "--chat") == 2


def test_an_answer_ends_with_the_template_s_token(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].zero_()  # all logits are equal, and the first id is that of <|im_end|>
    save_file(weights, folder / "model.safetensors")
    assert run("generate", f"checkpoint={folder}", "--chat", "Why?", "--stats") == 0
    printed = capsys.readouterr()
    assert printed.out == "\n"
    assert "autoregressive: 1 tokens" in printed.err


def test_a_task_asks_as_generate_does(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"checkpoint={folder}", "decoding.strategy=autoregressive", "decoding.max_new_tokens=12"]
    assert run("generate", *settings, "--chat", QUESTION) == 0
    row = {"q": QUESTION, "a": capsys.readouterr().out.removesuffix("\n")}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        'generation_kwargs: {until: ["@@@"], max_gen_toks: 12}\nmetric_list: [{metric: exact_match}]\n'
    )
    right = {}
    for applied in (True, False):
        argv = ["tasks=[own]", "tasks_path=tasks", "scorings=[backbone]", f"apply_chat_template={applied}"]
        assert run("evaluate", *settings, *argv) == 0
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        right[document["apply_chat_template"]] = document["tasks"]["own"]["metrics"]["exact_match"]["written"]["value"]
    assert right == {True: 1, False: 0}
    (folder / "tokenizer_config.json").unlink()
    assert run("evaluate", *settings, "tasks=[own]", "tasks_path=tasks", "apply_chat_template=true") == 2
    assert "has no chat template" in capsys.readouterr().err
