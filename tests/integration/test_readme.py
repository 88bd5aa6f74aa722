"""Every command and every Python example of the README and of docs/ runs."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from recyclegpt import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.train_checks import build_parts
from recyclegpt.errors import ConfigError
from tests.chat_tokenizer import write_chat_tokenizer
from tests.small_run import ONE_JOB_STEP, SMALLER

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHAT_MODEL = "SmolLM2-135M-Instruct"
MAKE_TRAIN = "recyclegpt train experiment=tiny_cpu"
COMPOSED_ONLY = ("trainer=gpu", "trainer=ddp", "trainer=fsdp", "data=hf_stream", "experiment=gpt_125m_python")
"""What needs a GPU or a network is checked as far as the configuration goes."""


def blocks(page: Path, language: str) -> Iterator[str]:
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if match.group(1) == language:
            yield match.group(2)


def command_lines(page: Path) -> list[str]:
    """The lines of a page's plain code blocks, continued lines joined."""
    text = "".join(blocks(page, "")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip()]


def readme_commands() -> list[str]:
    found = [line for line in command_lines(ROOT / "README.md") if line.startswith(("recyclegpt ", "make "))]
    assert found
    return found


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's reader stands: one folder, the commands one after another."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "docs", folder / "docs")
    return folder


def test_the_readme_has_the_commands_it_promises() -> None:
    found = readme_commands()
    assert "make train" in found
    assert "make test" in found
    shown = {command.split()[1] for command in found if command.startswith("recyclegpt")}
    assert shown >= {"train", "adapt", "generate", "evaluate", "generate-corpus", "bench", "export", "report", "doctor"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"@$(BIN)/{MAKE_TRAIN}" in makefile
    for command in found:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE), command


def shrink(command: str, arguments: list[str], stdlib: Path) -> list[str]:
    """The same command on a small model and a small corpus."""
    if command == "adapt":  # the model that is adapted here is a small one
        arguments = [part for part in arguments if not part.startswith("model.context_length")]
    arguments = [*arguments, *SMALLER.get(command, ())]
    reads_default_corpus = command in ("train", "adapt") and not any(
        part.startswith("data=") and part != "data=python_stdlib" for part in arguments
    )
    if reads_default_corpus:
        arguments += [f"data.root={stdlib}"]
    if reads_default_corpus and command == "train":
        arguments += ["data.tokenizer.vocab_size=300"]
    if command == "train" and any(part == "-m" or part.startswith("sweep=") for part in arguments):
        arguments += [*ONE_JOB_STEP, *([] if any(part.startswith("seed=") for part in arguments) else ["seed=1"])]
    return arguments


@pytest.mark.parametrize(
    "line", [MAKE_TRAIN, *[command for command in readme_commands() if command.startswith("recyclegpt ")]]
)
def test_readme_command(
    line: str,
    user_folder: Path,
    stdlib: Path,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Callable[..., Path],
) -> None:
    monkeypatch.chdir(user_folder)
    if CHAT_MODEL in line:
        monkeypatch.chdir(write_chat_tokenizer(tiny_checkpoint(name=CHAT_MODEL)).parent)
    command, *arguments = shlex.split(line)[1:]
    if any(word in arguments for word in COMPOSED_ONLY):
        cfg = compose_or_explain(command, [*arguments, "paths.output_dir=outputs"], check_values=False)
        try:
            build_parts(cfg)
        except ConfigError as error:
            assert all("torch sees no CUDA device" in problem for problem in error.problems)
        return
    assert run(command, *shrink(command, arguments, stdlib)) == 0


@pytest.mark.parametrize(
    ("page", "code"),
    [
        pytest.param(page, code, id=page.name)
        for page in PAGES
        for code in blocks(page, "python")
        if page.name != "how-to.md"  # its script wants a trained model: test_how_to.py
    ],
)
def test_python_example(page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = RecycleGPT(ModelConfig(64, num_layers=1, hidden_size=16, num_heads=2), RecycleConfig(num_layers=1))
    exec(compile(code, page.name, "exec"), {"model": model, "torch": torch})  # the examples are ours
