"""Values of YAML against annotations."""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Protocol, TypeVar, Union

import pytest

from recyclegpt.configuration.type_check import describe, fits, type_hints

if TYPE_CHECKING:
    from nowhere import Missing


class Colour(enum.Enum):
    RED = "red"


class Shaped(Protocol):
    shape: int


T = TypeVar("T")


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [1, -1], [1.0, "1", True, None, [1]]),
        (float, [1, 1.5, float("inf")], ["1", False, None]),
        (bool, [True], [1, 0, "true", None]),
        (str, ["", "x"], [1, None, ["x"]]),
        (None, [None], [0, ""]),
        (int | None, [1, None], ["x", 1.5]),
        (Optional[str], ["x", None], [1]),  # noqa: UP045
        (Union[int, list[int]], [1, [1], []], [[1.5], "x", {"a": 1}]),  # noqa: UP007
        (Literal["a", 1], ["a", 1], ["b", True, 1.0, None]),
        (list[int], [[1, 2], []], [["a"], 1, "12", {"a": 1}]),
        (Sequence[float], [[1, 2.5]], ["12", [None]]),
        (Iterable[str], [["a"]], [[1], 3]),
        (tuple[float, float], [[0.9, 1]], [[1], [1, 2, 3], 1]),
        (tuple[int, ...], [[], [1, 2, 3]], [["a"]]),
        (set[int], [[1]], [["a"]]),
        (dict[str, int], [{"a": 1}, {}], [{"a": "b"}, [1], 1]),
        (Mapping[str, Any], [{"a": None}], [[1], "a"]),
        (list, [[1, "a"]], ["a", 1, {}]),
        (dict, [{}], [[]]),
        (Path, ["x/y"], [1, None, ["x"]]),
        (str | Path, ["x"], [1]),
        (Annotated[int, "how many"], [1], ["x"]),
        (Colour, ["RED", "red"], ["blue", 1]),
        (Callable[[int], int], [], ["x", 1, {"a": 1}]),
        (Shaped, [1, "x"], []),
        (Any, [1, None, "x", {}], []),
        (object, [1, None, [], {}], []),
        (T, [1, None], []),
        ("a forward reference", [1], []),
    ],
    ids=str,
)
def test_what_fits(hint, right, wrong):
    assert [value for value in right if not fits(value, hint)] == []
    assert [value for value in wrong if fits(value, hint)] == []
    assert isinstance(describe(hint), str)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "an integer or null"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (list[int], "a list, each item an integer"),
        (tuple[float, int], "a list of 2 (a number, an integer)"),
        (tuple[int, ...], "a list, each item an integer"),
        (Sequence[str], "a list, each item a string"),
        (str | Path, "a string or a path"),
        (bool, "true or false"),
        (dict[str, int], "a mapping"),
        (Colour, "one of 'RED'"),
    ],
    ids=str,
)
def test_words(hint, words):
    assert describe(hint) == words


def test_one_annotation_that_cannot_be_read_does_not_hide_the_others():
    def function(a: "Missing", b: "int", c: float) -> None: ...

    assert type_hints(function) == {"b": int, "c": float, "return": type(None)}

    class Class:
        def __init__(self, a: int) -> None: ...

    assert type_hints(Class)["a"] is int
