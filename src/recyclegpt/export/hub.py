"""Uploading an exported folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from recyclegpt.errors import RunError


def repository_problems(name: str) -> list[str]:
    """What is wrong with a repository's name, found before anything is written."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return [f"push: {name!r} is not a valid name on the hub ({error}); give OWNER/NAME"]
    return [] if "/" in name else [f"push: {name!r} does not name an owner; give OWNER/NAME"]


def push_folder(folder: Path, name: str, private: bool) -> str:
    """Upload a folder in one commit; the repository is created if it does not exist.

    Returns:
        The address of the repository.

    Raises:
        RunError: the hub is out of reach or refuses; the folder stays as it is.
    """
    api = HfApi()
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Export from recyclegpt")
    except Exception as error:  # HTTP, network, token and validation errors have no common type
        raise RunError(
            f"push: {name}: {error}\n{folder} is written; upload it later with `hf upload {name} {folder}`"
        ) from error
    return str(repository)
