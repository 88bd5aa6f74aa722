"""Random bytes and random trees: what reads them ends in its own error, or names what it skips."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.build import build
from recyclegpt.data import TextTokenizer
from recyclegpt.data.readers import read_rows, read_text
from recyclegpt.data.shards import read_meta
from recyclegpt.errors import ConfigError
from recyclegpt.reporting import read_runs
from recyclegpt.runs.folder import read_provenance
from tests.small_run import NEWEST

PIECES = st.sampled_from(
    [
        *(b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\r\n", b"\n", b"\xed\xa0\x80", b"\xe9", b" ", b"text"),
        *(b'{"text": "a"}', b'{"text": 5}', b'{"text": "\\ud800"}', b'{"text": ', b"[", b"]", b"{}", b"null", b"1e999"),
    ]
)
BYTES = st.lists(PIECES | st.binary(max_size=6), max_size=14).map(b"".join)
MANY = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEW = settings(MANY, max_examples=12)
TARGETS = st.sampled_from(
    [
        *("os.system", "torch.load", "builtins.exec", "recyclegpt.commands.main.main", "..", ""),
        *("recyclegpt.models.ModelConfig", "recyclegpt.", "torch.optim.SGD", "lightning.pytorch.Trainer"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | TARGETS
KEYS = st.sampled_from(["_target_", "_args_", "_partial_", "_convert_", "_recursive_", "x"]) | st.text(max_size=5)
TREES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=3), max_leaves=8
)


@MANY
@given(BYTES)
def test_every_line_of_a_text_is_read_or_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(content)
    records = list(read_text(file))
    problems = [record.problem for record in records if record.problem]
    assert records
    assert all(str(file) in problem for problem in problems)
    if not problems:
        read = "".join(record.text for record in records)
        assert read == content.replace(b"\xef\xbb\xbf", b"").decode().replace("\r\n", "\n").replace("\r", "\n")


@MANY
@given(BYTES)
def test_every_json_line_is_read_or_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    records = list(read_rows(file, "text"))
    lines = [line for line in content.replace(b"\xef\xbb\xbf", b"").splitlines() if line.strip()]
    is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # one message for the whole file
    if not lines or not (lines[0].lstrip().startswith(b"[") or lines[0].rstrip().endswith((b"{", b"[", b",", b":"))):
        assert len(records) == (1 if is_utf16 else max(1, len(lines)))
    assert records
    assert all(str(file) in record.problem for record in records if record.problem)


@MANY
@given(BYTES)
def test_random_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(content)
    (record,) = read_rows(file, "text")
    assert str(file) in (record.problem or "")


@MANY
@given(TREES)
def test_random_trees_are_refused_or_built(tree: Any) -> None:
    with contextlib.suppress(ConfigError):
        build(tree, "node")


def damaged(content: bytes, kind: str, place: int, more: bytes) -> bytes:
    """A file cut off, with a byte changed, with others appended, or replaced."""
    at = place % max(1, len(content))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ (1 + place % 255)]) + content[at + 1 :]
    return content + more if kind == "append" else more


READERS: dict[str, Callable[[Path], object]] = {
    f"run/checkpoints/{NEWEST}": lambda root: load_trained(root / "run"),
    f"run/checkpoints/{NEWEST}.json": lambda root: load_trained(root / "run"),
    "run/checkpoints/tokenizer.json": lambda root: TextTokenizer.from_file(root / "run/checkpoints"),
    "run/provenance.json": lambda root: read_provenance(root / "run"),
    "run/result.json": lambda root: read_runs(root / "run"),
    "run/.hydra/config.yaml": lambda root: read_runs(root / "run"),
    "shards/meta.json": lambda root: read_meta(root / "shards"),
}


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("name", READERS)
@FEW
@given(st.sampled_from(["cut", "flip", "append", "replace"]), st.integers(0, 1 << 20), BYTES)
def test_a_damaged_file_is_read_or_refused(
    base: Path, tmp_path: Path, name: str, checksum: bool, kind: str, place: int, more: bytes
) -> None:
    for part in ("run", "shards"):
        if not (tmp_path / part).exists():
            shutil.copytree(base / part, tmp_path / part)
    if not checksum:
        (tmp_path / f"run/checkpoints/{NEWEST}.json").unlink(missing_ok=True)
    (tmp_path / name).write_bytes(damaged((base / name).read_bytes(), kind, place, more))
    with contextlib.suppress(ConfigError):
        READERS[name](tmp_path)
