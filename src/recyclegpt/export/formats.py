"""What each export format writes into a folder, and what a user does with it next."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recyclegpt.checkpoints.load import CONFIG, LoadedModel
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.export.draft_model import KINDS as DRAFTS
from recyclegpt.export.draft_model import draft_config, draft_weights
from recyclegpt.export.safetensors import write_weights
from recyclegpt.files import write_json
from recyclegpt.models.huggingface.llama_layout import backbone_config, backbone_weights
from recyclegpt.models.huggingface.module_folder import module_config, module_weights
from recyclegpt.models.huggingface.own_layout import own_config, own_weights, write_code

FORMATS = ("recyclegpt", "llama", "module", *DRAFTS)
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
    trained, model, kind, dtype = export.trained, export.trained.model, export.kind, export.dtype
    size = _ONE_FILE if kind == "recyclegpt" else export.max_shard_size
    ends = trained.tokenizer.stop_ids
    end, start = ends[0] if len(ends) == 1 else ends, start_id(trained.tokenizer)
    if kind == "recyclegpt":
        config, weights = own_config(model, dtype, end, start), own_weights(model)
        write_code(folder)
    elif kind == "llama":
        config, weights = backbone_config(model.config, dtype, end, start), backbone_weights(model)
    elif kind == "module":
        config, weights = module_config(model, dtype), module_weights(model)
    else:
        config, weights = draft_config(model, kind, dtype), draft_weights(model, kind)
    write_json(folder / "config.json", config)
    write_weights(folder, weights, dtype, size)
    if kind in ("module", *DRAFTS):  # the backbone brings tokenizer and settings
        return
    write_hf_tokenizer(trained.tokenizer, folder, model.config.context_length)
    tokens = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": trained.tokenizer.eos_id}
    write_json(folder / "generation_config.json", tokens)
    if trained.backbone is not None:  # its makers' settings for chats, padding and sampling
        for name in CARRIED:
            if (trained.backbone / name).is_file():
                shutil.copyfile(trained.backbone / name, folder / name)


def next_step(export: Export, out: Path) -> str:
    """Commands or lines of Python that use the folder."""
    if export.kind == "recyclegpt":
        return (
            "from recyclegpt import RecycleGPT\n"
            f"model = RecycleGPT.from_pretrained({str(out)!r})\n\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"tokenizer = AutoTokenizer.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
            f"model = AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
            'inputs = tokenizer("...", return_tensors="pt")\n'
            'model.generate(**inputs, max_new_tokens=50, strategy="verified", num_recycled=1)'
        )
    if export.kind == "llama":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f"tokenizer = AutoTokenizer.from_pretrained({str(out)!r})\n"
            f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})\n\n"
            f"vllm serve {shlex.quote(str(out))}"
        )
    if export.kind == "module":
        backbone = export.trained.backbone.name if export.trained.backbone else "BACKBONE"
        ask = "--prompt" if export.trained.tokenizer.chat is None else "--chat"
        return f'recyclegpt generate checkpoint={shlex.quote(backbone)} module={shlex.quote(str(out))} {ask} "..."'
    # As many tokens as the module was trained to draft in a row.
    num_drafted = (export.trained.config.get("loss") or {}).get("num_unrolled", 1)
    speculative = {"method": "eagle", "model": str(out), "num_speculative_tokens": num_drafted}
    target, path = export.target or "TARGET", export.trained.path
    serve = f"vllm serve {shlex.quote(target)} --speculative-config {shlex.quote(json.dumps(speculative))}"
    if export.target:
        return serve
    checkpoint = shlex.quote(str(path.parent if path.name == CONFIG else path))
    return f"recyclegpt export checkpoint={checkpoint} format=llama output_dir={target}\n{serve}"


def start_id(tokenizer: TextTokenizer) -> int | None:
    """The one token that begins a text; None where there is none, or more than `transformers` has a name for."""
    return tokenizer.start_ids[0] if len(tokenizer.start_ids) == 1 else None


def write_hf_tokenizer(tokenizer: TextTokenizer, folder: Path, context_length: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.

    The end token also pads: a token of its own would need a row in the embedding that no training has seen.

    Raises:
        OSError: a file cannot be written.
    """
    tokenizer.save(folder / "tokenizer.json")
    special = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.eos_token}
    if start_id(tokenizer) is not None:
        special["bos_token"] = tokenizer.decode(tokenizer.start_ids)
    chat = {}
    if tokenizer.chat is not None:
        special |= tokenizer.chat.special_tokens
        chat = {"chat_template": tokenizer.chat.source}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **chat,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", special)
