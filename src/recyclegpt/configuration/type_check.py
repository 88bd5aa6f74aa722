"""Whether a value from a config file fits a type annotation, and the words for what would fit."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import os
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

_SIMPLE = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "null",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a class's constructor or of a function, by parameter, as far as they can be evaluated."""
    function = target.__init__ if inspect.isclass(target) else target
    function = inspect.unwrap(function)
    try:
        return typing.get_type_hints(function)
    except Exception:
        # One name that exists only for type checkers must not switch off the check of all the others.
        return dict(_each_hint(function))


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value (as YAML gives it) may be passed where `hint` is annotated; True where that cannot be told.

    An integer is a number, true and false are not; a list may stand for a tuple, a string for a path.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union or origin is types.UnionType:
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    if hint is None:
        return value is None
    kind = origin or hint
    if not isinstance(kind, type) or kind in (object, Any):
        return True
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is bool or kind is str:
        return isinstance(value, kind)
    if issubclass(kind, enum.Enum):
        return isinstance(value, str) and (value in kind.__members__ or value in [member.value for member in kind])
    if isinstance(value, str):
        # A string is a sequence to Python, never to the author of an annotation.
        return issubclass(kind, os.PathLike) or _is_protocol(kind)
    if isinstance(value, dict):
        return _dict_fits(value, kind, arguments)
    if isinstance(value, (list, tuple)):
        return _list_fits(value, kind, arguments)
    return _is_protocol(kind) or isinstance(value, kind)


def describe(hint: Any) -> str:
    """What would fit, in words: "an integer or null", "one of 'constant', 'ramp'"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union or origin is types.UnionType:
        return " or ".join(dict.fromkeys(describe(argument) for argument in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is typing.Annotated:
        return describe(arguments[0])
    kind = origin or hint
    if kind is tuple and arguments and Ellipsis not in arguments:
        return f"a list of {len(arguments)} ({', '.join(describe(argument) for argument in arguments)})"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"one of {', '.join(map(repr, kind.__members__))}"
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    if isinstance(kind, type) and kind is not str and issubclass(kind, (list, tuple, collections.abc.Sequence)):
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if hint is None:
        return "null"
    if isinstance(kind, type):
        return _SIMPLE.get(kind, f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", ""))
    return str(hint)


def _is_protocol(kind: type) -> bool:
    """Whether a class only describes what an object can do; `collections.abc` is not meant."""
    return bool(getattr(kind, "_is_protocol", False)) and kind.__module__ != "collections.abc"


def _each_hint(function: Callable[..., Any]) -> collections.abc.Iterator[tuple[str, Any]]:
    for name, annotation in getattr(function, "__annotations__", {}).items():
        alone = types.FunctionType((lambda: None).__code__, getattr(function, "__globals__", {}))
        alone.__annotations__ = {name: annotation}
        try:
            yield name, typing.get_type_hints(alone)[name]
        except Exception:  # see type_hints
            continue


def _dict_fits(value: dict[Any, Any], kind: type, arguments: tuple[Any, ...]) -> bool:
    if not isinstance(value, kind):
        return False
    if len(arguments) != 2:
        return True
    return all(fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items())


def _list_fits(value: list[Any] | tuple[Any, ...], kind: type, arguments: tuple[Any, ...]) -> bool:
    # YAML has lists only: one may stand for any sequence, tuple or set, but not for a mapping or another object.
    if not (issubclass(kind, (tuple, set, frozenset)) or isinstance(list(value), kind)):
        return False
    if issubclass(kind, tuple) and arguments and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return not arguments or all(fits(item, arguments[0]) for item in value)
