"""Uploading, with a hub that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from recyclegpt.errors import RunError
from recyclegpt.export import hub


class Url(str):
    """As `huggingface_hub.RepoUrl`: an address that knows more."""

    __slots__ = ()
    repo_id = "someone/a-model"


class FakeApi(NamedTuple):
    """Answers as `HfApi` does, and remembers what it was asked."""

    asked: list[dict[str, Any]]

    def create_repo(self, repo_id: str, **settings: Any) -> Url:
        self.asked.append({"repo_id": repo_id, **settings})
        return Url(f"https://hub.test/{repo_id}")

    def upload_folder(self, **settings: Any) -> None:
        self.asked.append(settings)


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_is_made_and_filled_in_one_commit(
    private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi([])
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert hub.push_folder(tmp_path, "someone/a-model", private) == "https://hub.test/someone/a-model"
    made, filled = api.asked
    assert made == {"repo_id": "someone/a-model", "private": private, "exist_ok": True}
    assert (filled["repo_id"], filled["folder_path"]) == ("someone/a-model", tmp_path)


def test_without_a_network_the_real_client_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE"):
        hub.push_folder(tmp_path, "someone/a-model", private=True)


@pytest.mark.parametrize("name", ["model", "owner/", "owner/mo del"])
def test_names_that_the_hub_would_refuse(name: str) -> None:
    assert len(hub.repository_problems(name)) == 1
