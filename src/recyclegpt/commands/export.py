"""`recyclegpt export`: a trained model as a folder for the tools that serve models, and on the hub on request."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch

from recyclegpt.checkpoints.load import LoadedModel, load_trained
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.schemas import type_problems
from recyclegpt.errors import ConfigError, RunError
from recyclegpt.export.folder import occupied, replaced
from recyclegpt.export.formats import FORMATS, Export, next_step, write_export
from recyclegpt.export.hub import push_folder, repository_problems
from recyclegpt.export.model_card import CardFacts, model_card
from recyclegpt.hardware.dtypes import DTYPES
from recyclegpt.models.huggingface.shards import stored_dtype
from recyclegpt.runs.folder import PROVENANCE, RESULT

HELP = """usage: recyclegpt export checkpoint=RUN format=FORMAT out=FOLDER [KEY=VALUE ...]

Writes a trained model for other tools, with a model card. Formats:
  recyclegpt  all of it: RecycleGPT.from_pretrained, and transformers with trust_remote_code (default)
  llama       the backbone alone, in the layout of its Hugging Face family
  vllm        the module as a draft model for vLLM (EagleMistralForCausalLM)
  eagle       a module trained with recycle=eagle as an EAGLE-1 draft model (EagleLlamaForCausalLM)
Settings: checkpoint (a run folder or .ckpt file; default: the newest under outputs/train), dtype (own, float32,
bfloat16, float16), max_shard_size, overwrite=true, target (the draft's target, for the command that is printed),
push=OWNER/NAME (upload to the Hugging Face hub), private=false."""

EXPORT_DTYPES = ("own", "float32", "bfloat16", "float16")


def run(argv: Sequence[str]) -> int:
    """The command."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(HELP)
        return 0
    cfg = compose_or_explain("export", list(argv))
    texts = {"checkpoint": str, "format": str, "out": str, "dtype": str, "target": str | None, "push": str | None}
    sizes = {"max_shard_size": str | int, "overwrite": bool, "private": bool}
    if problems := type_problems(cfg, texts | sizes):
        raise ConfigError(problems)
    if cfg.format not in FORMATS:
        near = difflib.get_close_matches(cfg.format, FORMATS, n=1)
        # What is exported for transformers is the same folder.
        near = ["recyclegpt"] if cfg.format == "transformers" else near
        hint = f"use {near[0]}" if near else f"choose from {', '.join(FORMATS)}"
        problems.append(f"format: {cfg.format!r} is unknown; {hint}")
    if cfg.dtype not in EXPORT_DTYPES:
        problems.append(f"dtype: {cfg.dtype!r} is unknown; choose from {', '.join(EXPORT_DTYPES)}")
    if cfg.push is not None:
        problems += repository_problems(cfg.push)
    out = Path(cfg.out).expanduser()
    if why := occupied(out, cfg.overwrite):
        problems.append(f"out: {why}")
    if problems:
        raise ConfigError(problems)
    trained = load_trained(cfg.checkpoint)
    if trained.backbone is not None and out.is_dir() and out.samefile(trained.backbone):
        raise ConfigError(f"out: {out} holds the weights that {trained.path} is made of; give another folder")
    dtype = own_dtype(trained, cfg.format) if cfg.dtype == "own" else DTYPES[cfg.dtype]
    export = Export(trained, cfg.format, dtype, cfg.max_shard_size, cfg.target)
    try:
        with replaced(out) as folder:
            write_export(export, folder)
            (folder / "README.md").write_text(_card(trained, export, out, cfg.push), encoding="utf-8")
    except OSError as error:
        raise RunError(f"out: {out} cannot be written ({error.strerror or error}); nothing was changed") from error
    print(f"written to {out}: format {cfg.format}, {str(dtype).removeprefix('torch.')}, from {trained.path}")
    if cfg.push is not None:
        print(f"uploaded to {push_folder(out, cfg.push, cfg.private)}")
    print(f"\nnext:\n{next_step(export, out)}")
    return 0


def own_dtype(trained: LoadedModel, kind: str) -> torch.dtype:
    """The format that loses nothing: a backbone alone leaves as it came; a module was trained in fp32."""
    if kind == "llama" and trained.backbone is not None:
        return stored_dtype(trained.backbone) or trained.model.dtype
    return trained.model.dtype


def _card(trained: LoadedModel, export: Export, out: Path, repository: str | None) -> str:
    """The card of this export; numbers come from the run folder that the checkpoint lies in."""
    model = trained.model
    decoding = trained.config.get("decoding")
    run_folder = trained.path.resolve().parent.parent
    facts = CardFacts(
        title=repository.partition("/")[2] if repository else str(trained.config.get("name") or "RecycleGPT"),
        kind=export.kind,
        step=trained.step,
        depth=model.recycle_config.num_layers,
        num_parameters=model.num_parameters(),
        num_parameters_recycle=model.num_parameters_recycle(),
        num_recycled=decoding.get("num_recycled") if isinstance(decoding, dict) else None,
        data=trained.config.get("data") or {},
        usage=next_step(export, Path(repository or out)),
    )
    return model_card(facts, run_folder / RESULT, run_folder / PROVENANCE)
