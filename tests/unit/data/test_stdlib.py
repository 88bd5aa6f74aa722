from __future__ import annotations

from pathlib import Path

import pytest

from recyclegpt.data import PythonStdlib


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "lib"
    for number in range(60):
        file = root / f"package{number % 3}" / f"module{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"number = {number}\n")
    for name in (
        "site-packages/numpy/a.py",
        "dist-packages/a.py",
        "test/test_a.py",
        "package0/tests/test_b.py",
        "idlelib/idle_test/c.py",
        "__pycache__/d.py",
        "config-3.11-x86_64-linux-gnu/e.py",
        "_sysconfigdata__linux.py",
        "package0/data.txt",
    ):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("left_out = True\n")
    (root / "package0" / "__init__.py").write_text("")
    return root


def test_files_are_divided_once_and_for_all(library: Path) -> None:
    source = PythonStdlib(str(library))
    train, val = source.files("train"), source.files("val")
    assert sorted(train + val) == sorted(source.files())
    assert len(train) + len(val) == 60
    assert 0 < len(val) < 15
    texts = [record.text for split in ("train", "val") for record in source.records(split)]  # type: ignore[arg-type]
    assert sorted(texts) == sorted(f"number = {number}\n" for number in range(60))


def test_place_does_not_matter_and_content_does(library: Path, tmp_path: Path) -> None:
    before = PythonStdlib(str(library)).fingerprint()
    moved = library.rename(tmp_path / "elsewhere")
    assert PythonStdlib(str(moved)).fingerprint() == before
    (moved / "package1" / "module1.py").write_text("number = -1\n")
    assert PythonStdlib(str(moved)).fingerprint() != before


def test_coding_cookie_is_honoured_and_bad_bytes_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (tmp_path / "b.py").write_bytes(b"name = '\xff'\n")
    source = PythonStdlib(str(tmp_path))
    records = [record for split in ("train", "val") for record in source.records(split)]  # type: ignore[arg-type]
    assert any("'é'" in record.text for record in records)
    assert [record.problem for record in records if record.problem] != []
    assert all("b.py" in record.problem for record in records if record.problem)


def test_the_interpreters_own_library() -> None:
    source = PythonStdlib()
    names = {path.relative_to(source.root).as_posix() for path in source.files()}
    assert "argparse.py" in names
    assert not any("site-packages" in name or "/tests/" in name or name.startswith("test/") for name in names)
    assert sum(path.stat().st_size for path in source.files()) > 5_000_000
