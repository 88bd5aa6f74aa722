"""The GPU figures of a README, filled in from `report.json`, so that nobody copies a number by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recyclegpt.errors import ConfigError
from recyclegpt.reporting.gpu_report import SMOKE, commands_of, commit_of, device_of, distrust
from recyclegpt.reporting.gpu_targets import gpu_targets

BEGIN, END = "<!-- gpu-report:begin -->", "<!-- gpu-report:end -->"
NOTHING_YET = (
    "No GPU figure exists yet: the CUDA code is tested as far as a CPU can, and `make gpu-report` has not been run on\n"
    "a GPU. It measures decoding, training and a model trained there, in ten minutes, and fills in the table that\n"
    "belongs here ([docs/gpu.md](docs/gpu.md))."
)


def readme_block(document: Mapping[str, Any] | None) -> str:
    """What stands between the marks: every target with its value, then where it was measured.

    Args:
        document: `report.json`; None: there is none, and the block says so.

    Raises:
        ConfigError: the report is a smoke run, whose numbers mean nothing.
    """
    if document is None:
        return NOTHING_YET
    if document.get("smoke"):
        raise ConfigError(f"--readme: {SMOKE} Run `make gpu-report` on a CUDA device")
    header = ["| on a GPU | measured | wanted |", "|---|---|---|"]
    rows = [
        f"| {target.name} | {_measured(target.shown(target.value), target.verdict)} | "
        f"{'at least' if target.at == 'least' else 'at most'} {target.shown(target.target)} |"
        for target in gpu_targets(document["parts"])
    ]
    commands = ", ".join(f"`{command}`" for command in commands_of(document))
    told = f"Measured on {device_of(document)}, commit {commit_of(document)}, {commands}."
    warning = distrust(document["parts"])
    return "\n".join([*header, *rows, "", told, *([f"**{warning}**"] if warning else [])])


def _measured(value: str, verdict: str) -> str:
    return {"met": f"**{value}**", "missed": f"{value} (missed)"}.get(verdict, "not measured")


def fill_in(text: str, block: str, where: str) -> str:
    """`text` with `block` between the marks.

    Raises:
        ConfigError: the marks are not there once each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after or END in before:
        raise ConfigError(f"--readme: {where} must hold the lines {BEGIN} and {END} once each, in this order; add them")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"
