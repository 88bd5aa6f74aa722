"""The base of all cases, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from .place import make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, its shards, and a short run on each."""
    folder = tmp_path_factory.mktemp("bad-input-base")
    make_base(folder)
    return folder
