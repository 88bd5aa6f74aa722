"""What is said of files that hold something else, and where articles begin. Needs no harness."""

from __future__ import annotations

from pathlib import Path

import pytest

from recyclegpt.errors import ConfigError
from recyclegpt.evaluation.local_tasks import articles, blimp, wikitext

PAIR = '{"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps."}\n'


def test_articles_begin_at_titles_and_nowhere_else() -> None:
    text = " \n = A = \n \n a = b , = c \n = = Part = = \n = = = Deeper = = = \n x \n = Two words = \n y \n"
    assert articles(text) == [
        " = A = \n \n a = b , = c \n = = Part = = \n = = = Deeper = = = \n x \n",
        " = Two words = \n y \n",
    ]
    assert articles("No title .\n") == ["No title .\n"]
    assert articles(" \n\n") == []
    assert "".join(articles(text)) == text.removeprefix(" \n")


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = " = A = \n x \u2028 = no title = \x85 = none = \n y"
    assert articles(text) == [text]
    pair = PAIR.replace("Cats", "Cats\u2028\x85")
    (tmp_path / "a.jsonl").write_text(pair * 2, encoding="utf-8")
    (group,) = blimp(tmp_path)["task"]
    assert len(group["task"][0]["custom_dataset"]()["test"]) == 2


def test_what_an_operating_system_puts_there_is_passed_over(tmp_path: Path) -> None:
    for folder in ("data", "__MACOSX/data", ".cache"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "a.jsonl").write_text(PAIR, encoding="utf-8")
    for other in ("__MACOSX/data/a.jsonl", "data/._a.jsonl", ".cache/b.jsonl"):
        (tmp_path / other).write_bytes(b"\0\x05\x16\x07")
    (group,) = blimp(tmp_path)["task"]
    assert [task["task"] for task in group["task"]] == ["a"]
    hidden = tmp_path / ".blimp"
    (tmp_path / "data").rename(hidden)
    assert blimp(hidden)["task"], "a folder that the user names is read whatever it is called"


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task_files\.blimp_local: .* has no \.jsonl files"):
        blimp(tmp_path)
    for content in ("not json\n", "[1]\n", '{"sentence_good": "x"}\n', "\n"):
        (tmp_path / "a.jsonl").write_text(PAIR * bool(content.strip()) + content, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"a\.jsonl does not hold pairs"):
            blimp(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xe8")
    for name, problem in (("nowhere", "cannot be read"), ("empty", "holds no text"), ("latin", "cannot be read")):
        with pytest.raises(ConfigError, match=rf"{name}\.txt {problem}"):
            wikitext([str(tmp_path / f"{name}.txt")])
