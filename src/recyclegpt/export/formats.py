"""What each export format writes into a folder, and what a user does with it next."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recyclegpt.checkpoints.load import LoadedModel
from recyclegpt.checkpoints.model_folder import CONFIG
from recyclegpt.export.draft_model import draft_config, draft_weights
from recyclegpt.export.safetensors import write_json, write_weights
from recyclegpt.export.tokenizer import start_id, write_hf_tokenizer
from recyclegpt.models.huggingface.llama_layout import backbone_config, backbone_weights
from recyclegpt.models.huggingface.own_layout import CODE, own_config, own_weights

CARRIED = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
"""Files of a pretrained backbone that an export of it keeps."""
_ONE_FILE = "1000TB"
"""`RecycleGPT.from_pretrained` is `huggingface_hub`'s and reads no shards."""


@dataclass(frozen=True)
class Export:
    """What is exported, and how."""

    trained: LoadedModel
    kind: str
    dtype: torch.dtype
    max_shard_size: str | int
    target: str | None
    """Name of a draft's target in the serve command."""


def write_export(export: Export, folder: Path) -> None:
    """Write everything but the card.

    Raises:
        ConfigError: the format cannot hold this model; every obstacle is named.
        OSError: a file cannot be written.
    """
    FORMATS[export.kind].write(export, folder)


def next_step(export: Export, out: Path) -> str:
    """Commands or lines of Python that use the folder."""
    return FORMATS[export.kind].next_step(export, out)


def _own(export: Export, folder: Path) -> None:
    trained = export.trained
    write_json(folder / "config.json", own_config(trained.model, export.dtype, *_ends(trained)))
    write_weights(folder, own_weights(trained.model), export.dtype, _ONE_FILE)
    for place, code in CODE.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(code, encoding="utf-8")
    _text_files(export, folder)


def _llama(export: Export, folder: Path) -> None:
    trained = export.trained
    config = backbone_config(trained.model.config, export.dtype, *_ends(trained))
    write_json(folder / "config.json", config)
    write_weights(folder, backbone_weights(trained.model), export.dtype, export.max_shard_size)
    _text_files(export, folder)


def _draft(export: Export, folder: Path) -> None:
    model = export.trained.model
    write_json(folder / "config.json", draft_config(model, export.kind, export.dtype))
    write_weights(folder, draft_weights(model, export.kind), export.dtype, export.max_shard_size)


def _text_files(export: Export, folder: Path) -> None:
    trained = export.trained
    write_hf_tokenizer(trained.tokenizer, folder, trained.model.config.context_length)
    end, start = _ends(trained)
    tokens = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": trained.tokenizer.eos_id}
    write_json(folder / "generation_config.json", tokens)
    if trained.backbone is not None:  # its makers' settings for chats, padding and sampling
        for name in CARRIED:
            if (trained.backbone / name).is_file():
                shutil.copyfile(trained.backbone / name, folder / name)


def _ends(trained: LoadedModel) -> tuple[int | list[int], int | None]:
    """Ids that end and begin a text."""
    ends = trained.tokenizer.stop_ids
    return ends[0] if len(ends) == 1 else ends, start_id(trained.tokenizer)


def _use_own(_: Export, out: Path) -> str:
    return (
        "from recyclegpt import RecycleGPT\n"
        f"model = RecycleGPT.from_pretrained({str(out)!r})\n\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
        'inputs = tokenizer("...", return_tensors="pt")\n'
        'model.generate(**inputs, max_new_tokens=50, strategy="verified", num_recycled=1)'
    )


def _use_llama(_: Export, out: Path) -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(out)!r})\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})\n\n"
        f"vllm serve {shlex.quote(str(out))}"
    )


def _use_draft(export: Export, out: Path) -> str:
    speculative = {
        "method": "eagle",
        "model": str(out),
        "num_speculative_tokens": _num_unrolled(export.trained.config),
    }
    target = export.target or "TARGET"
    path = export.trained.path
    checkpoint = shlex.quote(str(path.parent if path.name == CONFIG else path))
    serve = f"vllm serve {shlex.quote(target)} --speculative-config {shlex.quote(json.dumps(speculative))}"
    if export.target:
        return serve
    return f"recyclegpt export checkpoint={checkpoint} format=llama output_dir={target}\n{serve}"


def _num_unrolled(config: Mapping[str, Any]) -> int:
    """Number of tokens in a row that the module was trained to draft."""
    loss = config.get("loss")
    number = loss.get("num_unrolled") if isinstance(loss, Mapping) else None
    return number if isinstance(number, int) and number > 0 else 1


@dataclass(frozen=True)
class Format:
    """One way to write a model."""

    write: Callable[[Export, Path], None]
    next_step: Callable[[Export, Path], str]


FORMATS: Mapping[str, Format] = {
    "recyclegpt": Format(_own, _use_own),
    "llama": Format(_llama, _use_llama),
    "vllm": Format(_draft, _use_draft),
    "eagle": Format(_draft, _use_draft),
}
