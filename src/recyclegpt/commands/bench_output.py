"""The folder that a benchmark writes into, and what it prints for people."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from recyclegpt.benchmark.breakdown import PARTS
from recyclegpt.benchmark.grid import Row
from recyclegpt.console import print_table
from recyclegpt.errors import ConfigError, RunError
from recyclegpt.hardware.device import warn_contended
from recyclegpt.runs.folder import remove_empty_parents

COLUMNS = {
    "strategy": "strategy", "recycle_num_layers": "depth", "num_recycled": "m", "batch": "batch",
    "prompt_tokens": "prompt", "new_tokens": "new", "dtype": "dtype", "compile": "compile", "tokens_per_s": "tokens/s",
    "speedup": "speedup", "ceiling_measured": "ceiling", "ceiling_bytes": "by bytes", "acceptance": "acceptance",
    "verify_cost": "verify cost", "draft_cost": "draft cost", "bandwidth_utilisation": "bandwidth",
    "time_to_first_token_s": "first s",
}  # fmt: skip
SHAPE = ("recycle_num_layers", "batch", "prompt_tokens", "new_tokens", "dtype")


@contextlib.contextmanager
def output_folder(output_dir: str | None) -> Iterator[Path]:
    """Made before anything is measured, since a grid may take an hour; gone again if measuring failed.

    Raises:
        ConfigError: it cannot be made.
    """
    now = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path("outputs/bench", now) if output_dir is None else Path(str(output_dir)).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: {folder} cannot be written ({error})") from error
    try:
        yield folder
    except (ConfigError, RunError):
        with contextlib.suppress(OSError):  # it holds something: it was there before
            folder.rmdir()
            remove_empty_parents(folder)
        raise
    print(f"\nwritten to {folder}")


def print_progress(group: list[Row]) -> None:
    """One line a group to stderr: a grid may take long."""
    shape = ", ".join(f"{COLUMNS[key]} {group[0][key]}" for key in SHAPE)
    print(shape, *(f"{row['strategy']} {row['speedup']:.2f}x" for row in group), sep="; ", file=sys.stderr)


def print_grid(document: dict[str, Any], repetitions: int) -> None:
    """The document of a bench: a row a measurement, what they have in common, and where the time of a step goes."""
    rows, hardware = document["rows"], document["hardware"]
    varied = {"strategy", "num_recycled", "tokens_per_s"}
    varied |= {key for key in COLUMNS if len({str(row.get(key)) for row in rows}) > 1}
    print_table(
        [[row.get(key) for key in COLUMNS if key in varied] for row in rows],
        header=[word for key, word in COLUMNS.items() if key in varied],
    )
    common = [f"{COLUMNS[key]} {rows[0][key]}" for key in SHAPE if key not in varied]
    print(
        f"\n{document['model']['num_parameters']:,} parameters on {hardware['device']}, {hardware['threads']} threads; "
        f"{', '.join([*common, f'median of {repetitions} interleaved repetitions after a warm-up'])}\n"
        f"bandwidth: share of the {hardware['copy_bytes_per_s'] / 1e9:.1f} GB/s that a copy moves on this device"
    )
    if any(row.get("acceptance_given") for row in rows):
        print("verified: every pass is computed, then the given share of the drafted tokens is accepted")
    warn_contended(hardware)
    if document["breakdown"]:
        print()
        print_table(
            [(name, *(seconds[part] * 1e3 for part in PARTS)) for name, seconds in document["breakdown"].items()],
            header=("ms of a step", *PARTS),
        )
