from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

import recyclegpt.data.installed as installed
from recyclegpt.data import PythonPackages, TextDataModule, TokenizerConfig, held_out_packages
from recyclegpt.data.installed import default_roots, installed_files
from recyclegpt.data.python_packages import split_of
from recyclegpt.data.sources import SPLITS
from recyclegpt.errors import ConfigError

TRAIN = [name for name in map("some{}".format, range(30)) if split_of(name) == "train"]
VAL = [name for name in map("some{}".format, range(30)) if split_of(name) == "val"]


@pytest.fixture
def site(packages: Path, tmp_path: Path) -> Path:
    """A copy of the made packages that a test may change."""
    return shutil.copytree(packages, tmp_path / "site-packages")


def write(file: Path, content: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def distribution(site: Path, name: str, *files: str, record: bool = True) -> None:
    """Install files, and the metadata that says so."""
    info = site / f"{name}-1.0.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for file in files:
        write(site / file, f"owner = '{name} owns {file}'\n")
    if record:
        write(info / "RECORD", "".join(f"{file},sha256=x,1\n" for file in (*files, f"{name}.libs/a.so")))
    else:
        write(info / "top_level.txt", "".join(f"{file.split('/')[0]}\n" for file in files))


def places(site: Path) -> dict[str, str]:
    return {file.place: file.package for file in installed_files([site])}


def texts(source: PythonPackages) -> dict[str, list[str]]:
    return {split: [record.text for record in source.records(split)] for split in SPLITS}


def test_a_package_is_on_one_side_whole(site: Path) -> None:
    source = PythonPackages([str(site)])
    assert source.packages("train") == sorted(TRAIN)
    assert source.packages("val") == sorted(VAL) == held_out_packages(source)
    assert len(VAL) == 3
    read = texts(source)
    for split, names in (("train", TRAIN), ("val", VAL)):
        assert len(read[split]) == 4 * len(names)
        assert {text.split("_")[1] for text in read[split]} == {name.removeprefix("some") for name in names}
    assert held_out_packages(object()) is None


def test_where_it_lies_does_not_matter_and_content_and_owner_do(site: Path, tmp_path: Path) -> None:
    before = PythonPackages([str(site)])
    order = [file.place for split in SPLITS for file in before.files(split)]
    moved = site.rename(tmp_path / "elsewhere")
    after = PythonPackages([str(moved)])
    assert after.fingerprint() == before.fingerprint()
    assert [file.place for split in SPLITS for file in after.files(split)] == order != sorted(order)
    write(moved / TRAIN[0] / "part0.py", "changed = 'by a single line of text'\n")
    changed = PythonPackages([str(moved)]).fingerprint()
    distribution(moved, "another-owner", f"{TRAIN[1]}/part0.py")
    assert len({before.fingerprint(), changed, PythonPackages([str(moved)]).fingerprint()}) == 3


def test_any_beginning_is_a_sample_of_all_packages(site: Path) -> None:
    files = PythonPackages([str(site)]).files("train")
    assert len({file.package for file in files[: len(files) // 4]}) > len(TRAIN) / 2


def test_names_that_are_installed_together_are_one_package(site: Path) -> None:
    distribution(site, "Torch_Like", "torchlike/a.py", "torchlikegen/b.py", "single.py")
    distribution(site, "zoo.core", "zoo/core/a.py")
    distribution(site, "zoo-more", "zoo/more/a.py", "extra/b.py", "tests/test_a.py")
    distribution(site, "other", "other/a.py", "tests/test_b.py", record=False)
    write(site / "stray.py", "stray = True\n")
    found = places(site)
    assert {found[f"{name}.py"] for name in ("torchlike/a", "torchlikegen/b", "single")} == {"torch-like"}
    assert {found[f"{name}.py"] for name in ("zoo/core/a", "zoo/more/a", "extra/b")} == {"zoo-core"}
    assert found["other/a.py"] == "other"  # both left tests behind, which makes them no relatives
    assert found["stray.py"] == "stray"
    assert not any(place.startswith("tests/") for place in found)


def test_what_is_no_text_of_the_package_is_left_out(site: Path) -> None:
    before = places(site)
    for name in (
        "some0/_vendor/a.py",
        "some0/deep/third_party/a.py",
        "some0/__pycache__/a.py",
        "some0/data.txt",
        "recyclegpt/models/a.py",
        "hydra_plugins/recyclegpt_sweeper/a.py",
        "__editable___x_finder.py",
        "test/a.py",
    ):
        write(site / name, "left_out = True\n")
    assert places(site) == before


def test_copies_of_training_text_are_not_held_out(site: Path) -> None:
    name = VAL[0]
    source = (site / TRAIN[0] / "part0.py").read_text()
    write(site / name / "copied.py", source)
    write(site / name / "renamed.py", source.replace(f"function_{TRAIN[0].removeprefix('some')}_0_1", "renamed"))
    own = "".join(f"    own_line_of_the_package_{number} = {number}\n" for number in range(200))
    write(site / name / "borrowed.py", own + source)
    write(site / name / "short.py", "short = True\n")
    kept = {file.place for file in PythonPackages([str(site)]).files("val")}
    assert kept & {f"{name}/copied.py", f"{name}/renamed.py"} == set()
    assert kept >= {f"{name}/part0.py", f"{name}/borrowed.py", f"{name}/short.py"}


def test_generated_text_and_tables_are_left_out_and_counted(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = TRAIN[0]
    write(site / name / "large.py", "letters_and_letters = True\n" * 50_000)
    write(site / name / "long_line.py", f"short = 1\ntext = '{'letters ' * 200}'\n")
    write(site / name / "long_lines.py", f"text = '{'letters ' * 20}'\n" * 9)
    write(site / name / "numbers.py", "table = [\n" + "    1.2345, 6.7890,\n" * 90 + "]\n")
    write(site / name / "empty.py", "")
    with caplog.at_level(logging.INFO):
        kept = {file.place for file in PythonPackages([str(site)]).files("train")}
    assert {place for place in kept if place.startswith(f"{name}/")} == {f"{name}/part{part}.py" for part in range(4)}
    assert "1 of few letters, 1 too large, 2 with long lines" in caplog.text
    assert ", ".join(sorted(VAL)) in caplog.text


def test_names_that_are_no_text_are_left_out_and_counted(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = PythonPackages([str(site)]).fingerprint()
    try:
        for folder in (b"caf\xe9", os.fsencode(TRAIN[0]) + b"/\xff", os.fsencode(VAL[0])):
            write(site / os.fsdecode(folder) / os.fsdecode(b"\xe9.py"), "named = 'in another encoding'\n")
    except OSError:
        pytest.skip("this file system takes no such names")
    source = PythonPackages([str(site)])
    with caplog.at_level(logging.INFO):
        assert source.fingerprint() == before
    assert "3 with a name that is not UTF-8" in caplog.text
    assert all(source.candidates(split) for split in SPLITS)


def test_bad_bytes_and_unreadable_files_are_named(site: Path) -> None:
    name = TRAIN[0]
    (site / name / "cookie.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (site / name / "bad.py").write_bytes(b"name = '\xff'\n")
    (site / name / "dangling.py").symlink_to(site / "nowhere")
    records = list(PythonPackages([str(site)]).records("train"))
    assert any("'é'" in record.text for record in records)
    problems = sorted(record.problem for record in records if record.problem)
    assert len(problems) == 2
    assert "bad.py" in problems[0]
    assert "dangling.py" in problems[1]


def test_the_first_of_two_roots_wins(packages: Path, tmp_path: Path) -> None:
    write(tmp_path / "site-packages" / TRAIN[0] / "part0.py", "shadowed = True\n")
    found = {file.place: file.path for file in installed_files([packages, tmp_path / "site-packages"])}
    assert found[f"{TRAIN[0]}/part0.py"].parent.parent == packages
    assert len(found) == 120


def test_mistakes_are_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        PythonPackages([str(tmp_path / "a"), str(tmp_path / "b")])
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError) as caught:
        PythonPackages(["~nosuchuser/x", str(tmp_path / "b")])
    assert [problem.split(" is no folder")[0] for problem in caught.value.problems] == [
        "data.roots: ~nosuchuser/x",
        f"data.roots: {tmp_path / 'b'}",
    ]
    with pytest.raises(ConfigError, match=r"data\.roots: empty"):
        PythonPackages([])
    with pytest.raises(ConfigError) as caught:
        PythonPackages([str(tmp_path)]).fingerprint()
    assert [problem.split(" holds")[0] for problem in caught.value.problems] == [
        "data: the train split",
        "data: the val split",
    ]
    assert all("data=text_files" in problem for problem in caught.value.problems)


def test_this_interpreters_packages_are_on_one_side_each() -> None:
    source = PythonPackages()
    train, val = source.candidates("train"), source.candidates("val")
    assert {file.package for file in train} & {file.package for file in val} == set()
    assert {file.place for file in train} & {file.place for file in val} == set()
    found = {file.place: file.package for file in train + val}
    assert found["torch/__init__.py"] == found["torchgen/__init__.py"] == found["functorch/__init__.py"] == "torch"
    assert found["stdlib/argparse.py"] == "stdlib/argparse"
    assert found["stdlib/json/decoder.py"] == "stdlib/json"
    assert not any("/_vendor/" in place or place.startswith("recyclegpt/") for place in found)
    assert len(default_roots()) >= 2
    assert len(val) >= 50


def test_the_same_prompts_are_found_again(site: Path, tmp_path: Path) -> None:
    def module() -> TextDataModule:
        config = TokenizerConfig("bpe", 300)
        return TextDataModule(PythonPackages([str(site)]), config, 32, 2, cache_dir=tmp_path / "cache")

    first, again = module(), module()
    prompts = first.val_prompts(3, 8)
    assert (prompts == again.val_prompts(3, 8)).all()
    assert first.fingerprint == again.fingerprint
    shown = [first.tokenizer.decode(prompt) for prompt in prompts.tolist()]
    held_out = texts(PythonPackages([str(site)]))["val"]
    assert all(any(text.startswith(prompt) for text in held_out) for prompt in shown)


def test_a_name_in_two_distributions_joins_all_of_them_in_any_order() -> None:
    tops_of = {"a": {"x"}, "b": {"y"}, "c": {"x", "y"}, "d": {"z"}}
    assert installed._grouped(tops_of) == {"x": "a", "y": "a", "z": "d"}
    assert installed._grouped(dict(reversed(tops_of.items()))) == installed._grouped(tops_of)
