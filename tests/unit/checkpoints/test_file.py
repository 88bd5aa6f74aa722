"""A checkpoint is there whole or not at all, wherever the process that writes it ends, and damage is seen."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recyclegpt.callbacks.checkpoints import VerifiedCheckpointIO
from recyclegpt.checkpoints import file as checkpoint_file
from recyclegpt.checkpoints.file import (
    DamagedCheckpoint,
    SaveError,
    list_checkpoints,
    read_checkpoint,
    remove_checkpoint,
    remove_temporaries,
    sidecar,
    verify,
    write_checkpoint,
)
from recyclegpt.checkpoints.load import newest_sound_checkpoint
from recyclegpt.errors import ConfigError

CONTENT = {"weight": torch.arange(300_000.0), "step": 4, "names": ["a", "b"]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "step_0000004.ckpt"
    write_checkpoint(CONTENT, path, {"step": 4})
    return path


def test_what_was_written_is_read_and_nothing_else_is_left(saved: Path) -> None:
    found = read_checkpoint(saved)
    assert torch.equal(found["weight"], CONTENT["weight"])
    assert found["names"] == ["a", "b"]
    assert {file.name for file in saved.parent.iterdir()} == {saved.name, sidecar(saved).name}
    described = json.loads(sidecar(saved).read_text())
    assert described["format"] == 1
    assert described["step"] == 4
    assert described["size"] == saved.stat().st_size
    remove_checkpoint(saved)
    remove_checkpoint(saved)
    assert not list(saved.parent.iterdir())


def test_the_checksum_is_that_of_the_file(saved: Path) -> None:
    checkpoint_file._verified.clear()
    assert verify(saved)
    told = json.loads(sidecar(saved).read_text())["sha256"]
    by_others = subprocess.run(["sha256sum", saved], capture_output=True, text=True, check=True).stdout.split()[0]
    assert told == by_others


def flip(path: Path, at: int = -2000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, not "),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
        (flip, "sha256 differs"),
        (lambda path: sidecar(path).write_text("{"), r"\.json cannot be read"),
        (lambda path: sidecar(path).write_text("[]"), r"\.json cannot be read"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
)
def test_damage_is_seen_and_named(saved: Path, damage: Any, told: str) -> None:
    verify(saved)  # remembered, and yet noticed
    damage(saved)
    with pytest.raises(DamagedCheckpoint, match=told) as caught:
        read_checkpoint(saved)
    assert str(saved) in str(caught.value)


def test_the_newest_that_verifies_is_taken_and_the_damaged_one_is_told(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newer = saved.with_name("step_0000006.ckpt")
    write_checkpoint({"step": 6}, newer)
    assert newest_sound_checkpoint(saved.parent) == newer
    flip(newer, 40)
    assert newest_sound_checkpoint(saved.parent) == saved
    assert "step_0000006.ckpt is corrupt" in caplog.text
    assert "using step_0000004.ckpt instead" in caplog.text
    flip(saved, 40)
    with pytest.raises(ConfigError, match="move the folder away to start anew"):
        newest_sound_checkpoint(saved.parent)
    assert newest_sound_checkpoint(saved.parent / "nothing") is None


def test_one_without_a_checksum_is_taken_if_it_can_be_read_and_told(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sidecar(saved).unlink()
    assert not verify(saved)
    assert newest_sound_checkpoint(saved.parent) == saved
    assert "has no checksum" in caplog.text
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        newest_sound_checkpoint(saved.parent)


STOPPED_SCRIPT = """
import os, sys, torch
from pathlib import Path
from recyclegpt.checkpoints import file as f

folder, new = Path(sys.argv[1]), {"weight": torch.zeros(300_000), "step": 6}

def dying(function, at, calls=[]):
    calls.clear()
    def instead(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os._exit(9)
        return function(*args, **kwargs)
    return instead

# Every place between two of which the folder changes, before and after each change.
places = [(os, "fsync", 1), (os, "fsync", 2), (os, "fsync", 3), (os, "fsync", 4), (Path, "replace", 1),
          (Path, "replace", 2), (Path, "unlink", 1), (Path, "unlink", 2), (f._HashingFile, "write", 1),
          (f._HashingFile, "write", 5), (f, "write_whole", 1)]
for number, (owner, name, at) in enumerate(places):
    for again in (False, True):
        here = folder / f"{number}{again}"
        f.write_checkpoint({"weight": torch.ones(300_000), "step": 4}, here / "step_0000004.ckpt")
        if again:
            f.write_checkpoint({"weight": torch.ones(300_000), "step": 6}, here / "step_0000006.ckpt")
        child = os.fork()
        if child == 0:
            setattr(owner, name, dying(getattr(owner, name), at))
            f.write_checkpoint(new, here / "step_0000006.ckpt")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, (name, at)
"""


def test_a_process_that_dies_anywhere_in_a_save_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 22
    taken = []
    for folder in folders:
        path = newest_sound_checkpoint(folder)
        assert path is not None
        found = read_checkpoint(path)
        assert found["step"] == int(path.stem.removeprefix("step_"))
        assert found["weight"].unique().numel() == 1, "half of the old one and half of the new"
        taken.append(found["step"])
        remove_temporaries(folder)
        names = {file.name.removesuffix(".json") for file in folder.iterdir()}
        assert names == {checkpoint.name for checkpoint in list_checkpoints(folder)}
    assert set(taken) == {4, 6}, "some deaths came before the new file was in place and some after"


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        monkeypatch.setattr(checkpoint_file._HashingFile, "write", full)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    newer = saved.with_name("step_0000006.ckpt")
    with pytest.raises(SaveError, match="the disk is full") as caught:
        write_checkpoint(CONTENT, newer)
    monkeypatch.undo()
    assert str(newer) in str(caught.value)
    assert verify(saved)
    assert {file.name for file in saved.parent.iterdir()} == {saved.name, sidecar(saved).name}


def test_a_second_ctrl_c_in_a_save_is_not_taken_for_a_full_disk(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_file._HashingFile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(CONTENT, saved.with_name("step_0000006.ckpt"))
    assert verify(saved)
    assert {file.name for file in saved.parent.iterdir()} == {saved.name, sidecar(saved).name}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveError, match=r"file/step_1\.ckpt could not be written"):
        write_checkpoint(CONTENT, tmp_path / "file" / "step_1.ckpt")


def test_only_temporaries_and_lonely_checksums_are_removed(saved: Path) -> None:
    folder = saved.parent
    (folder / ".step_0000006.ckpt.0123abcd.tmp").touch()
    (folder / "step_0000009.ckpt.json").touch()
    (folder / ".notes.tmp").touch()
    assert len(remove_temporaries(folder)) == 2
    assert {file.name for file in folder.iterdir()} == {saved.name, sidecar(saved).name, ".notes.tmp"}


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_the_plugin_reads_nothing_but_plain_values_whatever_it_is_asked(tmp_path: Path) -> None:
    torch.save({"hyper_parameters": Evil(tmp_path / "ran")}, tmp_path / "step_1.ckpt")
    with pytest.raises(ConfigError, match="cannot be read"):
        VerifiedCheckpointIO().load_checkpoint(tmp_path / "step_1.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


def test_the_plugin_holds_an_error_only_while_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    io = VerifiedCheckpointIO({"config_hash": "abc"})
    with io.errors_held():
        io.save_checkpoint({}, tmp_path / "file" / "step_1.ckpt")
    assert io.error is not None
    with pytest.raises(SaveError):
        io.save_checkpoint({}, tmp_path / "file" / "step_1.ckpt")
    io.save_checkpoint({"global_step": 7}, tmp_path / "step_7.ckpt")
    assert json.loads(sidecar(tmp_path / "step_7.ckpt").read_text())["config_hash"] == "abc"
