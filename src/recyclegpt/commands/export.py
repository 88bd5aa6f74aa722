"""`recyclegpt export`: a trained model as a folder for the tools that serve models, and on the hub on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from recyclegpt.checkpoints.load import LoadedModel, load_trained
from recyclegpt.configuration.build import to_dataclass
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.errors import ConfigError, RunError
from recyclegpt.export.folder import occupied, replaced
from recyclegpt.export.formats import FORMATS, Export, next_step, write_export
from recyclegpt.export.hub import push_folder, repository_problems
from recyclegpt.export.model_card import CardFacts, model_card
from recyclegpt.hardware.device import DTYPES
from recyclegpt.models.huggingface.pretrained import stored_dtype
from recyclegpt.runs.folder import PROVENANCE, RESULT

DTYPE_NAMES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class ExportSettings:
    """The settings; conf/export.yaml says what each means."""

    checkpoint: str
    module: str | None
    format: str
    output_dir: str
    dtype: str
    max_shard_size: int | str
    overwrite: bool
    target: str | None
    push: str | None
    private: bool

    def __post_init__(self) -> None:
        problems = []
        for key, known in (("format", FORMATS), ("dtype", DTYPE_NAMES)):
            if (value := getattr(self, key)) not in known:
                problems.append(f"{key}: {value!r} is unknown; choose from {', '.join(known)}")
        if self.push is not None:
            problems += repository_problems(self.push)
        if why := occupied(Path(self.output_dir).expanduser(), self.overwrite):
            problems.append(f"output_dir: {why}")
        if problems:
            raise ConfigError(problems)


def run(argv: Sequence[str]) -> int:
    """The command."""
    settings = to_dataclass(ExportSettings, compose_or_explain("export", list(argv)))
    out = Path(settings.output_dir).expanduser()
    trained = load_trained(settings.checkpoint, module=settings.module)
    if trained.backbone is not None and out.is_dir() and out.samefile(trained.backbone):
        raise ConfigError(f"output_dir: {out} holds the weights that {trained.path} is made of; give another folder")
    dtype = lossless_dtype(trained, settings.format) if settings.dtype == "auto" else DTYPES[settings.dtype]
    export = Export(trained, settings.format, dtype, settings.max_shard_size, settings.target)
    try:
        with replaced(out) as folder:
            write_export(export, folder)
            (folder / "README.md").write_text(_card(trained, export, out, settings.push), encoding="utf-8")
    except OSError as error:
        raise RunError(f"output_dir: {out} cannot be written ({error}); nothing was changed") from error
    print(f"written to {out}: format {settings.format}, {str(dtype).removeprefix('torch.')}, from {trained.path}")
    if settings.push is not None:
        print(f"uploaded to {push_folder(out, settings.push, settings.private)}")
    print(f"\nnext:\n{next_step(export, out)}")
    return 0


def lossless_dtype(trained: LoadedModel, kind: str) -> torch.dtype:
    """The dtype in which nothing is lost: a backbone alone leaves as it came; a module was trained in fp32."""
    if kind == "llama" and trained.backbone is not None:
        return stored_dtype(trained.backbone) or trained.model.dtype
    return trained.model.dtype


def _card(trained: LoadedModel, export: Export, out: Path, repository: str | None) -> str:
    """The card of this export; numbers come from the run folder that the checkpoint lies in."""
    model, config = trained.model, trained.config
    run_folder = trained.path.resolve().parent.parent
    facts = CardFacts(
        title=repository.partition("/")[2] if repository else str(config.get("name") or "RecycleGPT"),
        kind=export.kind,
        step=trained.step,
        depth=model.recycle_config.num_layers,
        num_parameters=model.num_parameters(),
        num_parameters_recycle=model.num_parameters_recycle(),
        num_recycled=(config.get("decoding") or {}).get("num_recycled"),
        data=config.get("data") or {},
        usage=next_step(export, Path(repository or out)),
    )
    return model_card(facts, run_folder / RESULT, run_folder / PROVENANCE)
