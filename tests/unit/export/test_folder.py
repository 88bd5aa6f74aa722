"""An export appears whole, and nothing of anybody's is lost for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recyclegpt.export.folder import occupied, replaced
from recyclegpt.export.safetensors import write_weights


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "custom_generate").mkdir(parents=True)
    for name in ("config.json", "README.md", "custom_generate/generate.py"):
        (folder / name).write_text("old")
    write_weights(folder, {"a": torch.ones(9), "b": torch.ones(9)}, torch.float32, 40)
    return folder


def test_what_may_be_written_to(export: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert occupied(tmp_path / "new", overwrite=False) is None
    assert occupied(tmp_path / "empty", overwrite=False) is None
    assert occupied(export, overwrite=True) is None
    assert "overwrite=true" in str(occupied(export, overwrite=False))
    assert "is a file" in str(occupied(tmp_path / "file", overwrite=True))


def test_what_no_export_wrote_is_never_replaced(export: Path) -> None:
    (export / "thesis.tex").touch()
    assert "thesis.tex" in str(occupied(export, overwrite=True))
    (export / "thesis.tex").unlink()
    (export / "custom_generate" / "mine.py").touch()
    assert "custom_generate/mine.py" in str(occupied(export, overwrite=True))


def test_names_alone_make_no_export(export: Path) -> None:
    """A checkpoint from elsewhere has the same names, and so have weights that were trained further and saved here."""
    assert occupied(export, overwrite=True) is None
    one = export / "model-00001-of-00002.safetensors"
    for spoil in (lambda: save_file({"a": torch.ones(9)}, one, metadata={"format": "pt"}), lambda: one.write_text("x")):
        spoil()
        assert f"holds files that no export wrote ({one.name})" in str(occupied(export, overwrite=True))
    for path in export.glob("*.safetensors"):
        path.unlink()
    assert "no export wrote" in str(occupied(export, overwrite=True))


def test_the_new_takes_the_place_of_the_old(export: Path) -> None:
    with replaced(export) as folder:
        (folder / "config.json").write_text("new")
        assert (export / "config.json").read_text() == "old"
    assert [path.name for path in export.iterdir()] == ["config.json"]
    assert (export / "config.json").read_text() == "new"
    assert [path.name for path in export.parent.iterdir()] == ["out"], "nothing is left beside it"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_export_that_fails_leaves_what_was_there(export: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "config.json").write_text("new")
        raise error

    with pytest.raises(error), replaced(export) as folder:
        fail(folder)
    assert (export / "config.json").read_text() == "old"
    assert [path.name for path in export.parent.iterdir()] == ["out"]


def test_a_move_that_fails_puts_the_old_back(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == export and (self / "new").exists():
            raise OSError("full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="full"), replaced(export) as folder:
        (folder / "new").touch()
    assert (export / "config.json").read_text() == "old"
    assert [path.name for path in export.parent.iterdir()] == ["out"]
