"""A module for a pretrained backbone: trained, resumed, stored by itself, used by every command."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recyclegpt.checkpoints.file import list_checkpoints, read_checkpoint
from recyclegpt.checkpoints.load import load_trained
from recyclegpt.models.huggingface import load_backbone
from tests.chat_tokenizer import write_chat_tokenizer

from .test_readme import ROOT, command_lines, shrink

Run = Callable[..., int]
NO_MONITOR = ("callbacks=no_monitor", "~callbacks.trade_off")


@pytest.fixture
def quick(corpus: Path) -> list[str]:
    return ["debug=smoke_pretrained", "data=text_files", f"data.paths=[{corpus}]", *NO_MONITOR]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_module_alone_is_trained_and_stored(
    run: Run, quick: list[str], tiny_checkpoint: Callable[..., Path], precision: str
) -> None:
    folder = tiny_checkpoint("Qwen3ForCausalLM")
    dtype = "bfloat16" if precision == "bf16-mixed" else "float32"
    command = ["adapt", f"model.path={folder}", *quick, f"trainer.precision={precision}", f"model.dtype={dtype}"]
    assert run(*command, "hydra.run.dir=run") == 0
    (path,) = list_checkpoints(Path("run/checkpoints"))
    names = read_checkpoint(path)["state_dict"].keys()
    assert names
    assert all(name.startswith("model.recyclable.") for name in names)
    assert run("evaluate", "checkpoint=run", "dtype=float32") == 0
    trained = load_trained("run")
    backbone = load_backbone(folder)
    for name, weight in backbone.backbone.state_dict().items():
        assert torch.equal(weight, trained.model.backbone.state_dict()[name])
    result = json.loads(Path("run/result.json").read_text())
    assert result["metrics"]["val/loss_recycle"] < 8
    # A fresh module begins far from what three steps make of it.
    torch.manual_seed(1)
    fresh = load_backbone(folder, recycle=trained.model.recycle_config).recyclable
    assert fresh is not None
    assert trained.model.recyclable is not None
    assert not torch.equal(fresh.fc.weight, trained.model.recyclable.fc.weight)


def test_a_run_resumes_exactly(run: Run, quick: list[str], tiny_checkpoint: Callable[..., Path]) -> None:
    command = [
        "adapt",
        f"model.path={tiny_checkpoint()}",
        *quick,
        "checkpointing.every_n_steps=2",
        "checkpointing.keep=9",
        "recycle.draft_vocab=265",
        "loss.target=distill",
        "training.cache_states=true",
    ]
    assert run(*command, "hydra.run.dir=whole") == 0
    assert run(*command, "hydra.run.dir=again", "resume=whole/checkpoints/step_0000002.ckpt") == 0
    one, other = load_trained("whole"), load_trained("again")
    assert one.step == other.step == 6
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    late = ["loss.target=accepted_length", "resume=whole/checkpoints/step_0000004.ckpt", "hydra.run.dir=late"]
    assert run(*command, *late) == 0
    assert load_trained("late").step == 6
    assert not torch.equal(load_trained("late").model.recyclable.fc.weight, one.model.recyclable.fc.weight)


def test_a_chat_model_ends_its_texts_as_it_declares(
    run: Run, quick: list[str], tiny_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_checkpoint()
    ends = {"eos_token_id": [77, 5], "do_sample": True, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert run("adapt", f"model.path={folder}", *quick, "hydra.run.dir=run") == 0
    assert load_trained("run").tokenizer.stop_ids == [77, 5]
    for layout in ("recyclegpt", "llama"):
        assert run("export", "checkpoint=run", f"format={layout}", f"output_dir={layout}") == 0
        assert load_trained(layout).tokenizer.stop_ids == load_trained(folder).tokenizer.stop_ids == [77, 5]
        assert json.loads(Path(layout, "config.json").read_text())["eos_token_id"] == [77, 5]
        assert json.loads(Path(layout, "generation_config.json").read_text()) == ends
        assert "chat_template" in json.loads(Path(layout, "tokenizer_config.json").read_text())
    capsys.readouterr()


def test_a_backbone_alone_leaves_in_the_format_it_came_in(
    run: Run, quick: list[str], tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint()
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    assert run("adapt", f"model.path={folder}", *quick, "hydra.run.dir=run") == 0
    assert run("export", "checkpoint=run", "format=llama", "output_dir=again") == 0
    again = load_file("again/model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_every_command_finds_the_backbone_also_after_it_has_moved(
    run: Run, quick: list[str], tiny_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_checkpoint("MistralForCausalLM")
    assert run("adapt", f"model.path={folder}", *quick, "hydra.run.dir=run") == 0
    capsys.readouterr()
    generate = ["generate", "checkpoint=run", "--prompt", "def alpha", "decoding.max_new_tokens=20", "device=cpu"]
    for strategy in ("autoregressive", "verified"):
        assert run(*generate, f"decoding.strategy={strategy}", "decoding.dtype=float32") == 0
    one, other = capsys.readouterr().out.split("def alpha")[1:]
    assert one.strip() == other.strip()
    assert run("evaluate", "checkpoint=run", "dtype=float32") == 0
    before = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]

    shutil.move(folder, "elsewhere")
    assert run("evaluate", "checkpoint=run", "dtype=float32") == 2
    told = capsys.readouterr().err
    assert "holds the recyclable module alone" in told
    assert "ln -s NEW_PLACE run/backbone" in told
    Path("run/backbone").symlink_to(Path("elsewhere").resolve())
    assert run("evaluate", "checkpoint=run", "dtype=float32") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"] == before

    Path("run/backbone").unlink()
    Path("run/backbone").symlink_to(tiny_checkpoint("MistralForCausalLM", name="other", seed=1))
    assert run("evaluate", "checkpoint=run", "dtype=float32") == 2
    assert "needs another backbone" in capsys.readouterr().err


def test_the_module_as_a_folder_beside_its_backbone(
    run: Run,
    quick: list[str],
    tiny_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tiny_checkpoint()
    shape = ["recycle.num_layers=1", "recycle.draft_vocab=270"]
    assert run("adapt", f"model.path={folder}", *quick, *shape, "hydra.run.dir=run") == 0
    assert run("export", "checkpoint=run", "format=module", "output_dir=module") == 0
    weights = load_trained("run").model.state_dict()
    # The same backbone in another format, in files of another name.
    assert run("export", f"checkpoint={folder}", "format=llama", "output_dir=again", "dtype=bfloat16") == 0
    for place in (folder, "again"):
        model = load_backbone(place, module="module")
        assert all(
            torch.equal(weights[name], weight) for name, weight in model.state_dict().items() if "recyclable" in name
        )
    both = [f"checkpoint={folder}", "module=module"]
    assert run("generate", *both, "--prompt", "def alpha", "--stats") == 0
    assert "acceptance rate" in capsys.readouterr().err
    Path("prompts.jsonl").write_text('{"prompt": "def alpha(beta"}\n')
    brief = ["bench.new_tokens=[8]", "bench.repetitions=1", "bench.strategies=[verified]"]
    assert run("bench", *both, "prompts=prompts.jsonl", *brief) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][-1]["draft_vocab"] == 270
    assert run("export", *both, "format=vllm", "output_dir=draft") == 0
    # Training continues from it: at rate 0 it stays what it is.
    more = ["adapt", f"model.path={folder}", *quick, "module=module", "optimizer.lr=0", "optimizer.weight_decay=0"]
    assert run(*more, *shape, "hydra.run.dir=more") == 0
    again = load_trained("more").model.state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())
    assert run(*more, "hydra.run.dir=no") == 2
    assert "set recycle.draft_vocab=270" in capsys.readouterr().err
    # The demonstration of a real model, on this one.
    demo = [str(ROOT / "experiments/005_smollm2/demo.py"), str(write_chat_tokenizer(folder)), "--module", "module"]
    monkeypatch.setattr(sys, "argv", [*demo, "--prompts", "prompts.jsonl", "--new-tokens", "24", "--dtype", "float32"])
    runpy.run_path(demo[0], run_name="__main__")
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["num_equal"] == shown["num_texts"] == 1
    assert shown["mean_accepted_length"] >= 1
    for wrong, words in [("module", "trained on another backbone"), ("draft", "holds no module")]:
        other = tiny_checkpoint(name=f"other for {wrong}", seed=1)
        assert run("generate", f"checkpoint={other}", f"module={wrong}", "--prompt", "a") == 2
        assert words in capsys.readouterr().err


def test_another_backbone_or_another_way_of_storing_is_refused(
    run: Run, quick: list[str], tiny_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tiny_checkpoint(), tiny_checkpoint(name="second", seed=1)
    short = [*quick, "checkpointing.every_n_steps=2", "checkpointing.keep=9"]
    begun = "resume=run/checkpoints/step_0000002.ckpt"
    assert run("adapt", f"model.path={first}", *short, "hydra.run.dir=run") == 0
    capsys.readouterr()
    assert run("adapt", f"model.path={second}", *short, begun, "hydra.run.dir=two") == 2
    assert "model.path: the module was trained on another backbone" in capsys.readouterr().err
    assert run("adapt", f"model.path={first}", *short, begun, "backbone.frozen=false", "hydra.run.dir=two") == 2
    assert "backbone.frozen: the checkpoint holds the recyclable module alone" in capsys.readouterr().err
    assert not Path("two").exists()


def test_all_of_it_can_be_fine_tuned_at_two_rates(
    run: Run, quick: list[str], tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint("Qwen2ForCausalLM")
    command = ["adapt", f"model.path={folder}", *quick, "backbone.frozen=false", "optimizer.lr=1e-2"]
    assert run(*command, "optimizer.backbone_lr=1e-5", "optimizer.weight_decay=0", "hydra.run.dir=run") == 0
    model, before = load_trained("run").model, load_backbone(folder)
    moved = {
        name: float((weight - model.state_dict()[name]).abs().max()) for name, weight in before.state_dict().items()
    }
    assert 0 < max(moved.values()) < 1e-3
    assert len(read_checkpoint(list_checkpoints(Path("run/checkpoints"))[0])["state_dict"]) > len(moved)


def test_mistakes_are_named(
    run: Run, quick: list[str], tiny_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_checkpoint()
    for overrides, key in [
        ([], "model.path"),
        ([f"model.path={folder}", "data.tokenizer.kind=byte"], "data.tokenizer.kind"),
        ([f"model.path={folder}", "recycle.num_layers=0"], "recycle.num_layers"),
        ([f"model.path={folder}", "model.context_length=500"], "model.context_length"),
        ([f"model.path={folder}", "model.dtype=bfloat16", "backbone.frozen=false"], "model.dtype"),
    ]:
        assert run("adapt", *quick, *overrides) == 2
        assert key in capsys.readouterr().err


def test_the_commands_of_the_page_run(run: Run, stdlib: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One after another, made small; the first names a folder of the reader's, the chat a model of theirs."""
    lines = command_lines(ROOT / "docs" / "adapting.md")
    lines = [line for line in lines if not re.search("FOLDER_OR_NAME|--chat", line)]
    assert [line.split()[1] for line in lines] == [
        *("train", "export", "adapt", "export", "generate", "generate-corpus", "adapt")
    ]
    for line in lines:
        command, *arguments = shlex.split(line)[1:]
        arguments = shrink(command, arguments, stdlib)
        if command in ("train", "adapt"):
            arguments += ["callbacks=no_monitor"]
        if command == "generate-corpus":
            arguments += [f"data.root={stdlib}"]
        assert run(command, *arguments) == 0, capsys.readouterr().err
