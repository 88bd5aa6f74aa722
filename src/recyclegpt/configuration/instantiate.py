"""The one seam through which `_target_` nodes of a config become objects.

Hydra's own block-list of targets lets `torch.load` and `torch.hub.load` through and calls itself no security boundary;
here only what is allowed is built. `check` reads a node against the signature of its target and finds every problem
without building anything; `build` checks, then builds.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recyclegpt.configuration.type_check import describe, fits, type_hints
from recyclegpt.errors import ConfigError


class Allowed(NamedTuple):
    """A package that targets may come from."""

    package: str
    functions: tuple[str, ...] = ()
    """Its functions that may be called besides its classes."""
    except_in: tuple[str, ...] = ()


PARTS_OF_A_RUN = (
    "recyclegpt.training.adamw",
    "recyclegpt.training.constant",
    "recyclegpt.training.cosine",
    "recyclegpt.training.wsd",
)
OF_THE_PROGRAM = ("recyclegpt.commands", "recyclegpt.configuration", "recyclegpt.export", "recyclegpt.runs")
ALLOWED_PACKAGES = (
    # Of the functions those that make a part of a run: others write reports, remove checkpoints or call a compiler.
    Allowed(
        "recyclegpt",
        functions=PARTS_OF_A_RUN,
        except_in=("recyclegpt.commands", "recyclegpt.configuration", "recyclegpt.export", "recyclegpt.runs"),
    ),
    # Classes alone: among the functions are loaders of pickles. Its CLI instantiates any class path.
    Allowed("lightning.pytorch", except_in=("lightning.pytorch.cli",)),
    Allowed("torch.optim"),
)
ALLOWED_NAMES = ("datetime.timedelta",)
"""Single targets besides; `timedelta` is how a process group's timeout is given."""

FLAGS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_MISSING = "???"
_MOST_SHOWN = 12


def check(node: Any, path: str = "", *, extra: Collection[str] = ()) -> list[str]:
    """Every problem of a node and of all nodes below it; nothing is built.

    Args:
        node: a config, or plain dicts and lists. None and values without `_target_` are in order.
        path: dotted path of the node; problems begin with it.
        extra: keys below the node (dotted: "model.vocab_size") that `build` will be given; neither missing nor checked.

    Returns:
        One sentence a problem, naming key and value: a target that is not allowed or not there, an unknown or a missing
        argument, a value that does not fit its annotation, a mandatory value not given.
    """
    try:
        plain = _plain(node)
    except OmegaConfBaseException as error:
        return [_at(path, str(error).splitlines()[0])]
    return list(_check(plain, path, frozenset(extra)))


def build(node: Any, path: str | None = None, /, **extra: Any) -> Any:
    """Build the object a node describes, from plain Python containers (`_convert_: all`).

    Args:
        node: a config with `_target_`, or a mapping or list of such; None gives None.
        path: what problems begin with; default: the node's own path in its config.
        **extra: arguments the config does not hold. They reach the target as they are and win over the node's.

    Returns:
        The object; for `_partial_: true` a `functools.partial`; for a mapping or list of nodes the same of objects.

    Raises:
        ConfigError: all that `check` finds; or what a constructor refused, prefixed with the path of its node.
    """
    if node is None:
        return None
    if path is None:
        path = str(node._get_full_key(None)) if isinstance(node, (DictConfig, ListConfig)) else ""
    if problems := check(node, path, extra=extra):
        raise ConfigError(problems)
    return _construct(_plain(node), path, extra)


def build_all(
    cfg: DictConfig, keys: Iterable[str], extra: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Build several nodes of a config and report the problems of all of them at once.

    Args:
        cfg: the config.
        keys: dotted keys of the nodes, built in this order.
        extra: for some of the keys, the arguments that `build` takes as `**extra`.

    Raises:
        ConfigError: the problems of all nodes.
    """
    built: dict[str, Any] = {}
    problems: list[str] = []
    for key in keys:
        try:
            built[key] = build(OmegaConf.select(cfg, key), key, **(extra or {}).get(key, {}))
        except ConfigError as error:
            problems += error.problems
        except OmegaConfBaseException as error:
            problems.append(_at(key, str(error).splitlines()[0]))
    if problems:
        raise ConfigError(problems)
    return built


def locate(target: Any) -> Callable[..., Any]:
    """The class or function an allowed `_target_` names.

    Raises:
        ConfigError: it is not allowed, does not exist, or is something else than it seems.
    """
    if not isinstance(target, str):
        raise ConfigError(f"_target_: {target!r} is not a string")
    rule = _rule(target)
    if rule is None and target not in ALLOWED_NAMES:
        names = ", ".join([*(f"{allowed.package}.*" for allowed in ALLOWED_PACKAGES), *ALLOWED_NAMES])
        raise ConfigError(f"_target_: {target} is not allowed; a target is one of {names}")
    module_name, _, name = target.rpartition(".")
    if any(part.startswith("_") or not part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"_target_: {target} is not allowed; no part of a target begins with an underscore")
    try:
        module = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError) as error:
        raise ConfigError(f"_target_: {target} cannot be imported ({error})") from error
    try:
        found = getattr(module, name)
    except AttributeError as error:
        near = difflib.get_close_matches(name, [n for n in dir(module) if not n.startswith("_")], n=1)
        hint = f"; did you mean {module_name}.{near[0]}?" if near else ""
        raise ConfigError(f"_target_: {module_name} has no {name}{hint}") from error
    if rule is not None:
        # What a module imported for its own use (`os`, `torch.load`) can be reached through it, but belongs elsewhere.
        home = getattr(found, "__module__", None) or ""
        if not (inspect.isclass(found) or inspect.isfunction(found)):
            raise ConfigError(f"_target_: {target} is neither a class nor a function")
        if _rule(f"{home}.{name}") is not rule:
            raise ConfigError(f"_target_: {target} is not allowed; it belongs to {home or 'no module'}")
        if not inspect.isclass(found) and target not in rule.functions:
            own = f" and {', '.join(rule.functions)}" if rule.functions else ""
            raise ConfigError(f"_target_: {target} is not allowed; of {rule.package} only classes{own} are")
    return cast("Callable[..., Any]", found)


def _rule(name: str) -> Allowed | None:
    for allowed in ALLOWED_PACKAGES:
        if name.startswith(f"{allowed.package}."):
            excluded = any(name == part or name.startswith(f"{part}.") for part in allowed.except_in)
            return None if excluded else allowed
    return None


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, (DictConfig, ListConfig)) else node


def _check(node: Any, path: str, extra: frozenset[str]) -> Iterable[str]:
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from _check(item, f"{path}[{index}]", frozenset())
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key not in FLAGS and key not in extra:
            below = frozenset(name.split(".", 1)[1] for name in extra if name.startswith(f"{key}."))
            yield from _check(value, _join(path, key), below)
    if "_target_" in node:
        try:
            target = locate(node["_target_"])
        except ConfigError as error:
            yield from (_join(path, problem) for problem in error.problems)
        else:
            yield from _check_call(target, node, path, extra)


def _check_call(target: Callable[..., Any], node: dict[Any, Any], path: str, extra: frozenset[str]) -> Iterable[str]:
    for flag in ("_partial_", "_recursive_"):
        if not isinstance(node.get(flag, True), bool):
            yield _join(path, f"{flag}: {node[flag]!r} is not true or false")
    if node.get("_convert_", "all") not in ("none", "partial", "object", "all"):
        yield _join(path, f"_convert_: {node['_convert_']!r} is not one of none, partial, object, all")
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some classes written in C have none
        return
    positional = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = {p.name: p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    any_position = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    positions = node.get("_args_", [])
    if not isinstance(positions, list):
        yield _join(path, f"_args_: {positions!r:.60} is not a list")
        return
    if len(positions) > len(positional) and not any_position:
        yield _join(path, f"_args_: {len(positions)} values, but {node['_target_']} takes {len(positional)}")
    given = {**dict(zip(positional, positions, strict=False)), **{k: v for k, v in node.items() if k not in FLAGS}}
    hints = type_hints(target)
    for key, value in given.items():
        where = _join(path, key)
        if key in extra:
            continue
        if key not in named and key not in positional[: len(positions)]:
            if not any_keyword:
                yield f"{where}: unknown key{_suggest(key, named, path)}"
        elif value == _MISSING:
            if not node.get("_partial_", False):
                yield f"{where}: has no value; set {where}=..."
        elif not _built(value) and not fits(value, hints.get(key, object)):
            yield f"{where}: {value!r} is not {describe(hints[key])}"
    if not node.get("_partial_", False):
        for name, parameter in parameters.items():
            required = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            )
            if required and name not in given and name not in extra:
                where = _join(path, name)
                yield f"{where}: has no value, but {node['_target_']} needs one; set {where}=..."


def _built(value: Any) -> bool:
    """Whether a value will be an object by the time the target sees it, so that its type is not that of the node."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_built, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_built, value))


def _construct(node: Any, path: str, extra: Mapping[str, Any]) -> Any:
    if isinstance(node, (list, tuple)):
        return [_construct(item, f"{path}[{index}]", {}) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    partial = node.get("_partial_", False)
    below = node.get("_recursive_", True)
    arguments = {
        key: _construct(value, _join(path, key), {}) if below else value
        for key, value in node.items()
        if key not in FLAGS and key not in extra and not (partial and value == _MISSING)
    }
    arguments |= extra
    if "_target_" not in node:
        return arguments
    positions = [_construct(item, f"{_join(path, '_args_')}[{i}]", {}) for i, item in enumerate(node.get("_args_", []))]
    # Hydra only resolves the target (with its own block-list as a second guard) and is given no values: it would turn
    # dataclass instances, tuples and dicts among them into configs.
    target = instantiate({"_target_": node["_target_"], "_partial_": True})
    if partial:
        # Of the class itself: Hydra's partial cannot be pickled from 1.4 on.
        return functools.partial(target.func, *positions, **arguments)
    try:
        return target(*positions, **arguments)
    except ConfigError as error:
        raise ConfigError([_prefix(path, problem) for problem in error.problems]) from error
    except Exception as error:
        # Lightning and torch check values too, in exceptions of their own. Ours speak for themselves: a traceback then.
        if node["_target_"].startswith("recyclegpt.") or not _refuses(error):
            raise
        raise ConfigError(_at(path, f"{node['_target_']} refuses its settings: {error}")) from error


def _refuses(error: Exception) -> bool:
    return isinstance(error, (ValueError, TypeError)) or type(error).__name__ == "MisconfigurationException"


def _suggest(key: str, named: Iterable[str], path: str) -> str:
    names = [name for name in named if name != "self"]
    near = difflib.get_close_matches(str(key), names, n=1)
    if near:
        return f"; did you mean {_join(path, near[0])}?"
    if not names:
        return "; it takes none"
    shown = [*names[:_MOST_SHOWN], *([f"and {len(names) - _MOST_SHOWN} more"] if len(names) > _MOST_SHOWN else [])]
    return f"; choose from: {', '.join(shown)}"


def _prefix(path: str, problem: str) -> str:
    """A constructor knows its own arguments' names, not where its node stands."""
    parent, _, own = path.rpartition(".")
    if path and problem.startswith(f"{path}."):
        return problem
    if own and problem.startswith(f"{own}."):
        return _join(parent, problem)
    return _join(path, problem) if re.match(r"[A-Za-z_][\w.\[\]]*:", problem) else _at(path, problem)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _at(path: str, sentence: str) -> str:
    return f"{path}: {sentence}" if path else sentence
