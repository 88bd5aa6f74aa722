"""Finds a checkpoint: a local folder in Hugging Face layout, a GGUF file, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from recyclegpt.errors import ConfigError
from recyclegpt.gguf_header import is_gguf

_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json"]
_FILES += ["special_tokens_map.json", "chat_template.jinja"]


def locate(path: str, revision: str | None = None) -> Path:
    """The folder or GGUF file of a checkpoint; a name on the hub is downloaded first.

    Raises:
        ConfigError: no such folder, file or hub checkpoint, or the hub cannot be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() or is_gguf(folder):
        return folder
    if path.startswith(("/", ".", "~")) or path.endswith(".gguf") or path.count("/") != 1:
        raise ConfigError(
            f"path: {path} is not a folder or a GGUF file; give a checkpoint's folder, its GGUF file, or OWNER/NAME on "
            "the hub"
        )
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"path: {path} is not a folder, and could not be read from the hub ({reason}); "
            "check the name, the network, and for a gated checkpoint `hf auth login`"
        ) from error
