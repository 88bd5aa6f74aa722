"""`recyclegpt export` on runs trained here, every format loaded by whoever it is for."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recyclegpt import RecycleGPT, generate
from recyclegpt.checkpoints.load import LoadedModel, load_trained
from recyclegpt.commands.main import main

transformers = pytest.importorskip("transformers")

Run = Callable[..., int]
TEXT = "def alpha(beta, n=1):\n    return  beta"


def train(folder: Path, corpus: Path, *more: str) -> Path:
    argv = ["train", "debug=smoke", "data=text_files", f"data.paths=[{corpus}]", "data.tokenizer.vocab_size=300"]
    assert main([*argv, *more, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return train(tmp_path_factory.mktemp("trained") / "run", corpus, "loss=unrolled", "decoding.num_recycled=2")


@pytest.fixture(scope="module")
def model(trained: Path) -> LoadedModel:
    return load_trained(trained)


def test_the_whole_model_for_both_libraries(
    run: Run, trained: Path, model: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    # `from_pretrained` of `huggingface_hub` reads one file, however small the shards are to be.
    assert run("export", f"checkpoint={trained}", "output_dir=whole", "max_shard_size=20KB") == 0
    printed = capsys.readouterr().out
    prompt = model.tokenizer.encode(TEXT)
    tokens_BT = torch.tensor([prompt])
    expected = model.model.logits(model.model.backbone_states(tokens_BT))
    again = RecycleGPT.from_pretrained("whole")
    assert torch.equal(again.logits(again.backbone_states(tokens_BT)), expected)
    # What the command told to do next, word for word.
    lines = printed.partition("next:\n")[2].replace('"..."', "TEXT").splitlines()
    lines[-1] = f"written = {lines[-1]}"
    names: dict[str, Any] = {"TEXT": TEXT}
    exec("\n".join(lines).replace("max_new_tokens=50", "max_new_tokens=20"), names)
    assert names["inputs"]["input_ids"].tolist() == [prompt]
    wanted = generate(model.model, [prompt], 20, "autoregressive", stop_tokens=[model.tokenizer.eos_id]).tokens
    assert names["written"][:, len(prompt) :].tolist() == wanted


def test_the_backbone_for_transformers_alone(run: Run, trained: Path, model: LoadedModel) -> None:
    assert run("export", f"checkpoint={trained}", "format=llama", "output_dir=alone", "max_shard_size=20KB") == 0
    assert Path("alone/model.safetensors.index.json").exists()
    theirs = transformers.AutoModelForCausalLM.from_pretrained("alone")
    tokenizer = transformers.AutoTokenizer.from_pretrained("alone")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    inputs = tokenizer(TEXT, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [model.tokenizer.encode(TEXT)]
    assert tokenizer.decode(inputs["input_ids"][0]) == TEXT
    assert tokenizer.eos_token_id == theirs.generation_config.eos_token_id == model.tokenizer.eos_id
    written = theirs.generate(**inputs, max_new_tokens=20, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    prompt = inputs["input_ids"].tolist()
    wanted = generate(model.model, prompt, 20, "autoregressive", stop_tokens=[model.tokenizer.eos_id]).tokens
    assert written.tolist() == wanted


def test_the_module_as_a_draft_and_the_command_that_serves_it(
    run: Run, trained: Path, model: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", f"checkpoint={trained}", "format=vllm", "output_dir=draft", "dtype=bfloat16") == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.partition("next:\n")[2].splitlines()]
    assert run(*commands[0][1:]) == 0, "the first command exports the target"
    assert commands[1][:3] == ["vllm", "serve", "TARGET"]
    settings = json.loads(commands[1][commands[1].index("--speculative-config") + 1])
    num_unrolled = model.config["loss"]["num_unrolled"]
    assert num_unrolled > 1
    assert settings == {"method": "eagle", "model": "draft", "num_speculative_tokens": num_unrolled}
    weights = load_file("draft/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert not [name for name in weights if re.search("embed|lm_head|bias", name)]
    assert json.loads(Path("draft/config.json").read_text())["dtype"] == "bfloat16"
    assert sorted(path.name for path in Path("draft").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_eagle_is_a_preset_of_the_module(
    run: Run, trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", f"checkpoint={trained}", "format=eagle", "output_dir=no") == 2
    assert "use format=vllm" in capsys.readouterr().err
    assert not Path("no").exists()
    folder = train(tmp_path / "eagle", corpus, "recycle=eagle")
    assert run("export", f"checkpoint={folder}", "format=vllm", "output_dir=no") == 2
    assert "use format=eagle" in capsys.readouterr().err
    assert run("export", f"checkpoint={folder}", "format=eagle", "output_dir=draft", "target=org/model") == 0
    assert "vllm serve org/model --speculative-config" in capsys.readouterr().out
    assert json.loads(Path("draft/config.json").read_text())["architectures"] == ["EagleLlamaForCausalLM"]


def test_the_card_tells_what_the_run_measured(run: Run, trained: Path) -> None:
    # `from_pretrained` of `huggingface_hub` reads one file, however small the shards are to be.
    assert run("export", f"checkpoint={trained}", "output_dir=whole", "max_shard_size=20KB") == 0
    card = Path("whole/README.md").read_text()
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    assert f"| perplexity of the backbone | {metrics['val/ppl_backbone']:.4g} |" in card
    assert "`recyclegpt train debug=smoke" in card
    assert "2 recycled per pass" in card


def test_an_export_is_replaced_on_request_alone(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("export", f"checkpoint={trained}", "output_dir=folder")
    assert run(*argv) == 0
    assert run(*argv, "format=llama") == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert Path("folder/modeling_recyclegpt.py").exists()
    assert run(*argv, "format=llama", "overwrite=true") == 0
    assert not Path("folder/modeling_recyclegpt.py").exists()
    Path("folder/notes.txt").touch()
    assert run(*argv, "overwrite=true") == 2
    assert "notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["recyclegpt", "llama", "vllm"])
def test_another_checkpoint_of_the_same_names_is_never_replaced(
    run: Run, trained: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    argv = ("export", f"checkpoint={trained}", "output_dir=folder", f"format={kind}", "overwrite=true")
    assert run(*argv) == 0
    assert run(*argv) == 0, "its own"
    save_file(load_file("folder/model.safetensors"), "folder/model.safetensors", metadata={"format": "pt"})
    before = {path: path.read_bytes() for path in Path("folder").rglob("*") if path.is_file()}
    assert run(*argv) == 2
    assert "folder holds files that no export wrote (model.safetensors)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("folder").rglob("*") if path.is_file()} == before


def test_what_the_checkpoint_is_made_of_is_never_replaced(
    run: Run, trained: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", f"checkpoint={trained}", "format=llama", "output_dir=backbone") == 0
    adapt = ("adapt", "model.path=backbone", "debug=smoke_pretrained", "data=text_files", f"data.paths=[{corpus}]")
    assert run(*adapt, "callbacks=no_monitor", "hydra.run.dir=run") == 0
    Path("link").symlink_to("backbone")
    capsys.readouterr()
    for checkpoint, kind in (("run", "recyclegpt"), ("run", "vllm"), ("backbone", "llama")):
        for out, told in (("backbone", "holds the weights that"), ("link", "is a file or a link")):
            assert (
                run("export", f"checkpoint={checkpoint}", f"format={kind}", f"output_dir={out}", "overwrite=true") == 2
            )
            assert f"output_dir: {out} {told}" in capsys.readouterr().err
    assert run("export", "checkpoint=run", "format=vllm", "output_dir=draft") == 0
    assert run("export", "checkpoint=run", "format=vllm", "output_dir=draft", "overwrite=true") == 0, (
        "an export it is not of"
    )


def test_an_export_is_exported_again(run: Run, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed next runs, and says how a model without a module gets one."""
    # `from_pretrained` of `huggingface_hub` reads one file, however small the shards are to be.
    assert run("export", f"checkpoint={trained}", "output_dir=whole", "max_shard_size=20KB") == 0
    capsys.readouterr()
    assert run("export", "checkpoint=whole", "format=vllm", "output_dir=draft") == 0
    command = shlex.split(capsys.readouterr().out.partition("next:\n")[2].splitlines()[0])
    assert "checkpoint=whole" in command
    assert run(*command[1:]) == 0
    capsys.readouterr()
    assert run("export", "checkpoint=TARGET", "format=vllm", "output_dir=other") == 2
    assert "recyclegpt adapt" in capsys.readouterr().err
    Path("p.jsonl").write_text('{"category": "a", "prompt": "def"}\n', encoding="utf-8")
    assert run("bench", "checkpoint=TARGET", "prompts=p.jsonl") == 2
    assert "recyclegpt adapt" in capsys.readouterr().err


def test_a_pretrained_model_of_a_short_context_is_measured(
    run: Run, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", f"checkpoint={trained}", "format=llama", "output_dir=alone") == 0
    sizes = ["bench.prompt_tokens=[8]", "bench.repetitions=1", "output_dir=out", "bench.dtype=[float32]"]
    assert run("bench", "model=hf", "model.path=alone", *sizes, "bench.new_tokens=[8]") == 0
    capsys.readouterr()
    assert run("bench", "model=hf", "model.path=alone", *sizes, "bench.new_tokens=[9999]") == 2
    told = capsys.readouterr().err
    assert "exceed the context" in told
    assert "model.context_length" not in told


def test_pushing_uploads_what_was_written(
    run: Run, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[tuple[list[str], str, bool]] = []

    def push(folder: Path, name: str, private: bool) -> str:
        pushed.append((sorted(path.name for path in folder.iterdir()), name, private))
        return f"https://hub.test/{name}"

    monkeypatch.setattr("recyclegpt.commands.export.push_folder", push)
    argv = ("export", f"checkpoint={trained}", "format=vllm", "output_dir=draft", "push=me/draft", "target=me/target")
    assert run(*argv) == 0
    assert pushed == [(["README.md", "config.json", "model.safetensors"], "me/draft", True)]
    card = Path("draft/README.md").read_text()
    assert "# draft" in card
    assert '"model": "me/draft"' in card, "whoever reads the card there has no folder of ours"
    assert "https://hub.test/me/draft" in capsys.readouterr().out


def test_every_mistake_is_named_before_anything_is_read(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recyclegpt.commands.export.load_trained", lambda _: pytest.fail("read"))
    assert run("export", "format=transformers", "dtype=int4", "push=nobody", "output_dir=/proc/version") == 2
    told = capsys.readouterr().err
    for word in (
        "'transformers' is unknown; choose from recyclegpt",
        "dtype: 'int4'",
        "push: 'nobody'",
        "is a file",
    ):
        assert word in told
    assert run("export", "overwrite=perhaps", "output_dir=x") == 2
    told = capsys.readouterr().err
    assert "overwrite" in told
    assert run("export") == 2
    assert "output_dir: has no value" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_and_a_size_that_is_none(
    run: Run, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", f"checkpoint={trained}", "output_dir=/proc/x") == 1
    assert "/proc/x cannot be written" in capsys.readouterr().err
    assert run("export", f"checkpoint={trained}", "format=llama", "output_dir=x", "max_shard_size=large") == 2
    assert "max_shard_size: 'large'" in capsys.readouterr().err
    assert not Path("x").exists()
