"""What `recyclegpt bench` prints for people."""

from __future__ import annotations

import sys
from typing import Any

from recyclegpt.benchmark.breakdown import PARTS
from recyclegpt.benchmark.grid import Row
from recyclegpt.console import print_table
from recyclegpt.hardware.description import warn_contended

COLUMNS = {
    "strategy": "strategy",
    "recycle_num_layers": "depth",
    "num_recycled": "m",
    "batch": "batch",
    "prompt_tokens": "prompt",
    "new_tokens": "new",
    "dtype": "dtype",
    "compile": "compile",
    "tokens_per_s": "tokens/s",
    "speedup": "speedup",
    "ceiling_measured": "ceiling",
    "ceiling_bytes": "by bytes",
    "acceptance": "kept",
    "verify_cost": "verify cost",
    "draft_cost": "draft cost",
    "bandwidth_utilisation": "bandwidth",
    "time_to_first_token_s": "first s",
}


def print_progress(group: list[Row]) -> None:
    """One line a group to stderr: a grid may take long."""
    row = group[0]
    others = ", ".join(f"{other['strategy']} {other['speedup']:.2f}x" for other in group[1:])
    print(
        f"depth {row['recycle_num_layers']}, {row['dtype']}, batch {row['batch']}, {row['prompt_tokens']} + "
        f"{row['new_tokens']} tokens: {row['tokens_per_s']:.1f} tokens/s; {others}",
        file=sys.stderr,
    )


def print_tables(document: dict[str, Any], repetitions: int, trained: bool) -> None:
    """The document of a bench: a row a measurement, what they have in common, and where a cycle's time goes."""
    rows = document["rows"]
    varied = {"strategy", "num_recycled"} | {key for key in COLUMNS if len({str(row.get(key)) for row in rows}) > 1}
    columns = [key for key in COLUMNS if key in varied or key == "tokens_per_s"]
    print_table([tuple(row.get(key) for key in columns) for row in rows], header=[COLUMNS[key] for key in columns])
    hardware, first = document["hardware"], rows[0]
    same = ", ".join(
        f"{COLUMNS[key]} {first[key]}"
        for key in ("recycle_num_layers", "batch", "prompt_tokens", "new_tokens", "dtype")
        if key not in varied
    )
    print(
        f"\n{document['model']['num_parameters']:,} parameters on {hardware['device']}, {hardware['threads']} threads"
        + (f"; {same}" if same else "")
        + f"; median of {repetitions} interleaved repetitions after a warm-up;"
        f"\nbandwidth is the share of the {hardware['copy_bytes_per_s'] / 1e9:.1f} GB/s that a copy moves here"
    )
    if any(row.get("acceptance_given") for row in rows):
        print("verified: every pass is computed, then the given share of recycled tokens is kept")
    elif not trained:
        print("random weights: the share of tokens kept means nothing, and verified speed is that of this share")
    warn_contended(hardware)
    if document["stages"]:
        print()
        print_table(
            [(name, *(seconds[stage] * 1e3 for stage in PARTS)) for name, seconds in document["stages"].items()],
            header=("ms of a cycle", *PARTS),
        )
