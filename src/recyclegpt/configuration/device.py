"""Device, dtype and decoding settings of a command."""

from __future__ import annotations

import re

import torch
from omegaconf import DictConfig

from recyclegpt.checkpoints.load import LoadedModel
from recyclegpt.configuration.schemas import to_dataclass
from recyclegpt.decoding import DecodingConfig
from recyclegpt.errors import ConfigError, Problems
from recyclegpt.models import named_dtype


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
        raise ConfigError(
            f"decoding.stop: {text!r} holds half of a character; give both \\uXXXX of its pair"
        ) from error


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
