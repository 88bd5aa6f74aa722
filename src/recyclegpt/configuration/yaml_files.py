"""A look at every YAML file before Hydra composes it: what cannot be read is told with its line.

OmegaConf copies what an alias stands for, so that a file of a kilobyte can ask for more memory than there is; and the
name of a choice (`experiment=../../x`) could lead out of the folder of configs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult

from recyclegpt.errors import ConfigError

MOST_NODES = 100_000
MOST_LEVELS = 100
MOST_BYTES = 10_000_000
_STANDARD = "tag:yaml.org,2002:"
_PLAIN_TAGS = ("bool", "float", "int", "map", "merge", "null", "seq", "set", "str", "timestamp")


class BadConfigFile(ConfigError):  # noqa: N818 - it names a file
    """A config file that cannot be read."""


@contextmanager
def checked_files() -> Iterator[None]:
    """Let Hydra read no file that `check_file` refuses.

    Raises:
        BadConfigFile: inside, wherever such a file is read.
    """
    # Plugins are loaded by Hydra itself: the class that an import gives is another one.
    Plugins.instance()
    source: Any = SourcesRegistry.instance().resolve("file")
    original = source.load_config

    def load_config(self: Any, config_path: str) -> ConfigResult:
        folder = Path(self.path).resolve()
        path = folder / self._normalize_file_name(config_path)
        if ".." in Path(config_path).parts or Path(config_path).is_absolute():
            raise BadConfigFile(f"{config_path}: leads out of the folder of configs {folder}; give a name inside of it")
        if path.exists():
            check_file(path)
        return original(self, config_path)

    source.load_config = load_config
    try:
        yield
    finally:
        source.load_config = original


def check_file(path: Path) -> None:
    """Make sure that a YAML file holds plain values of a reasonable size.

    Raises:
        BadConfigFile: naming file, line and cause.
    """
    if not path.is_file():
        raise BadConfigFile(f"{path}: is no regular file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadConfigFile(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > MOST_BYTES:
        raise BadConfigFile(f"{path}: has {len(content):,} bytes; a config has {MOST_BYTES:,} at most")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadConfigFile(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    try:
        _check_nodes(path, text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise BadConfigFile(f"{path}:{line}: {error.reason} (U+{error.character:04X}); remove it") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        hint = "; YAML is indented by spaces, never by a tab" if "\\t" in str(error.problem) else ""
        raise BadConfigFile(f"{where}: {' '.join(filter(None, (error.context, error.problem)))}{hint}") from error
    except yaml.YAMLError as error:
        raise BadConfigFile(f"{path}: {error}") from error


def _check_nodes(path: Path, text: str) -> None:
    """Follow the parser's events, which are in the file's order and make nothing; aliases count as what they name."""
    sizes: dict[str, int] = {}
    open_nodes: list[_Open] = []
    num_documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            num_documents += 1
            if num_documents > 1:
                raise BadConfigFile(f"{path}:{line}: a second document begins; a config is one")
        if isinstance(event, yaml.NodeEvent):
            _check_tag(f"{path}:{line}", getattr(event, "tag", None))
            if not open_nodes and not isinstance(event, yaml.MappingStartEvent) and not _is_empty(event):
                raise BadConfigFile(f"{path}:{line}: is no mapping; a config holds KEY: VALUE lines")
            if open_nodes and isinstance(event, yaml.ScalarEvent):
                key = open_nodes[-1].next_key(event.value)
                if key is not None:
                    raise BadConfigFile(f"{path}:{line}: duplicate key {key}; keep one of them")
            elif open_nodes:
                open_nodes[-1].next_key(None)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_nodes) >= MOST_LEVELS:
                raise BadConfigFile(f"{path}:{line}: is nested deeper than {MOST_LEVELS} levels")
            open_nodes.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = open_nodes.pop()
            if closed.anchor:
                sizes[closed.anchor] = closed.size
            if open_nodes:
                open_nodes[-1].size += closed.size
        elif isinstance(event, yaml.AliasEvent):
            inside = any(node.anchor == event.anchor for node in open_nodes)
            if inside or sizes.get(event.anchor, 1) > MOST_NODES:
                raise BadConfigFile(f"{path}:{line}: aliases stand for more than {MOST_NODES:,} values; write them out")
            if open_nodes:
                open_nodes[-1].size += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent) and open_nodes:
            open_nodes[-1].size += 1
        if open_nodes and open_nodes[-1].size > MOST_NODES:
            raise BadConfigFile(f"{path}:{line}: aliases stand for more than {MOST_NODES:,} values; write them out")


class _Open:
    """A list or mapping whose end has not come: how many values it holds so far, and its keys."""

    def __init__(self, anchor: str | None, is_mapping: bool) -> None:
        self.anchor = anchor
        self.size = 1
        self._is_mapping = is_mapping
        self._keys: set[str] = set()
        self._is_key = True

    def next_key(self, value: str | None) -> str | None:
        """Note one more node; returns a key that was there before."""
        is_key, self._is_key = self._is_key, not self._is_key
        if not self._is_mapping or not is_key or value is None or value == "<<":
            return None
        if value in self._keys:
            return value
        self._keys.add(value)
        return None


def _check_tag(where: str, tag: str | None) -> None:
    if tag in (None, "!"):
        return
    name = str(tag).removeprefix(_STANDARD)
    if name not in _PLAIN_TAGS or not str(tag).startswith(_STANDARD):
        raise BadConfigFile(f"{where}: the tag !!{name} is not allowed; a config holds plain values")


def _is_empty(event: Any) -> bool:
    return isinstance(event, yaml.ScalarEvent) and not re.sub(r"(?i)^(~|null)$", "", event.value)
