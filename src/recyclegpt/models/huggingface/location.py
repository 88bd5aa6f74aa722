"""Finds a checkpoint in Hugging Face layout: a local folder, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from recyclegpt.errors import ConfigError

_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json"]
_FILES += ["special_tokens_map.json", "chat_template.jinja"]


def locate(path: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint; a name on the hub is downloaded first.

    Raises:
        ConfigError: no such folder or hub checkpoint, or the hub cannot be reached.
    """
    if "\0" in path:
        raise ConfigError(f"path: {path!r} contains a NUL byte")
    folder = Path(path).expanduser()
    try:
        if folder.is_dir():
            return folder
        if folder.exists():
            raise ConfigError(f"path: {path} is a file; give the folder that holds config.json and the safetensors")
    except OSError as error:
        raise ConfigError(f"path: {path[:200]} cannot be read ({error.strerror}); give another") from error
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise ConfigError(f"path: {path} does not exist; give a checkpoint's folder, or OWNER/NAME on the hub")
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_FILES))
    except HFValidationError as error:
        raise ConfigError(f"path: {path} is neither a folder nor a name on the hub ({error})") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"path: {path} is not a folder, and could not be read from the hub ({reason}); "
            "check the name, the network, and for a gated checkpoint `hf auth login`"
        ) from error
