"""`KEY+=N` in a sweep's control: N more than the other runs have. N is a number, or the key of one."""

from collections.abc import Sequence

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf


def is_increase(line: str) -> bool:
    """Whether a control's override is of the form `KEY+=N`."""
    return line.partition("=")[0].endswith("+")


def increased(control: Sequence[str], cfg: DictConfig) -> list[str]:
    """A control's overrides with every `KEY+=N` as `KEY=` what `cfg` has plus N.

    Raises:
        HydraException: KEY is not a whole number in `cfg`, or N neither one nor the key of one.
    """
    plain = []
    for line in control:
        if is_increase(line):
            key, value = line.partition("+=")[::2]
            present, more = (
                OmegaConf.select(cfg, key),
                int(value) if value.isdecimal() else OmegaConf.select(cfg, value),
            )
            if not isinstance(present, int) or not isinstance(more, int):
                raise HydraException(f"{line}: adds whole numbers, and {key} is {present!r}, {value} is {more!r}")
            line = f"{key}={present + more}"
        plain.append(line)
    return plain
