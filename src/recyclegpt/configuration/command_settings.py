"""What commands read from their configs: device and dtype, how to decode, and the corpus of a checkpoint or `data=`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

from recyclegpt.checkpoints.load import TOKENIZER, LoadedModel
from recyclegpt.configuration.build import build, to_dataclass
from recyclegpt.configuration.compose import to_plain
from recyclegpt.decoding import DecodingConfig
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.models import named_dtype

if TYPE_CHECKING:
    from recyclegpt.data import TextDataModule

NAME_ONE = "name one (data=GROUP data.KEY=VALUE), or for bench prompts=FILE"


def corpus_for(cfg: DictConfig, trained: LoadedModel) -> TextDataModule:
    """The corpus that `data=GROUP` names, else the one that a checkpoint was trained on.

    Raises:
        ConfigError: it cannot be read, or its tokens are not the model's.
    """
    config = trained.config
    if "data" in cfg:
        datamodule = given_corpus(cfg, trained)
    else:
        datamodule = _corpus_of_checkpoint(config.get("data"), trained.path)
    datamodule.connect(row_length(trained), 2 + config.get("loss", {}).get("num_unrolled", 1))
    datamodule.setup()
    if datamodule.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        if "data" in cfg:
            own = f"data.tokenizer.kind=file data.tokenizer.path={trained.tokenizer_file}"
            raise ConfigError(f"data: its tokenizer differs from the model's; tokenize the corpus with {own}")
        raise ConfigError(f"data: the text of {trained.path} has changed, and its tokenizer with it; {NAME_ONE}")
    return datamodule


def given_corpus(cfg: DictConfig, trained: LoadedModel) -> TextDataModule:
    """The corpus that `data=GROUP` names, not yet read, with the model's tokenizer.

    Raises:
        ConfigError: its settings cannot work.
    """
    settings = to_plain(cfg)["data"]
    # The model knows only its own tokens, whatever tokenizer the group would build.
    if settings.get("tokenizer") is not None:
        own = {"kind": "file", "path": str(trained.tokenizer_file), "end_token": trained.tokenizer.eos_token}
        settings["tokenizer"] = {"_target_": "recyclegpt.data.TokenizerConfig", **own}
    return corpus_of(settings)


def row_length(trained: LoadedModel) -> int:
    """Positions that a model was trained on; a pretrained backbone's context may be much longer."""
    return int(trained.config.get("model", {}).get("context_length") or trained.model.config.context_length)


def corpus_of(settings: Any) -> TextDataModule:
    """The corpus that a config's section `data` describes.

    Raises:
        ConfigError: it describes something else.
    """
    from recyclegpt.data import TextDataModule  # late: it imports Lightning

    if not isinstance(built := build(settings, "data"), TextDataModule):
        raise ConfigError(f"data: {type(built).__name__} is no corpus; choose one with data=GROUP data.KEY=VALUE")
    return built


def _corpus_of_checkpoint(settings: Any, checkpoint: Path) -> TextDataModule:
    if settings is None:
        raise ConfigError(f"checkpoint: {checkpoint.parent} holds a model and no run, so no corpus; {NAME_ONE}")
    # A tokenizer that the run read from a file is read from where the run has put it.
    if (settings.get("tokenizer") or {}).get("kind") == "file":
        settings = settings | {"tokenizer": settings["tokenizer"] | {"path": str(checkpoint.parent / TOKENIZER)}}
    try:
        return corpus_of(settings)
    except ConfigError as error:
        raise ConfigError(
            [f"checkpoint: the config of {checkpoint}: {problem}" for problem in error.problems]
        ) from None


def choose_device(name: str) -> torch.device:
    """The device of this name, made the current one where it is a GPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is unknown; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {name} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(f"device: {name}, but torch sees {count or 'no'} CUDA devices here; use cpu")
        torch.cuda.set_device(device)  # streams, graphs and kernels go where the tensors are
    return device


def device_and_dtype(
    device: str, dtype: str, section: str = "", decoding: bool = False
) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of these names; `section` is what the key `dtype` stands in, `decoding` allows int8 weights.

    Raises:
        ConfigError: naming what this machine does not have.
    """
    chosen = choose_device(device)
    problems = Problems()
    with problems.under(section):
        return chosen, named_dtype(dtype, chosen, decoding)
    raise ConfigError(problems.found)


def prepare_scoring(trained: LoadedModel, name: str, chosen: torch.dtype) -> tuple[torch.dtype, torch.dtype | None]:
    """The dtype in which a model scores, and that of autocast: `chosen`, but `auto` is fp32 after training in fp32."""
    trained_in_fp32 = trained.config.get("trainer", {}).get("precision") in ("32-true", "64-true")
    dtype = torch.float32 if name == "auto" and trained_in_fp32 else chosen
    if dtype == torch.float64:
        trained.model.double()
    return dtype, dtype if dtype in (torch.bfloat16, torch.float16) else None


def unescape(text: str) -> str:
    r"""`\n`, `\t`, `\r`, `\0`, `\\`, `\xXX` and `\uXXXX` as the characters they stand for; other backslashes stay.

    A shell and Hydra hand them over as they were typed. As in JSON, two `\uXXXX` may make one character.

    Raises:
        ConfigError: half of such a pair stands alone.
    """
    named = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}
    escape = re.compile(r"\\(?:([ntr0\\])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))")
    read = escape.sub(lambda found: named[found[1]] if found[1] else chr(int(found[2] or found[3], 16)), text)
    try:
        return read.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise ConfigError(f"decoding.stop: {text!r} holds half a character; give the whole pair") from error


def read_decoding(cfg: DictConfig) -> tuple[DecodingConfig, torch.device, torch.dtype]:
    """How, where and in which number format a command decodes.

    Raises:
        ConfigError: naming all that cannot be.
    """
    problems = Problems()
    with problems.under():
        decoding = to_dataclass(DecodingConfig, cfg.decoding, "decoding")
        decoding.stop = [unescape(text) for text in decoding.stop]
    with problems.under():
        device, dtype = device_and_dtype(cfg.device, str(cfg.decoding.dtype), "decoding.", decoding=True)
    problems.raise_any()
    return decoding, device, dtype
