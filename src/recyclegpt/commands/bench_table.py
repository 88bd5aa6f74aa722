"""What the bench commands print."""

from __future__ import annotations

from typing import Any

from recyclegpt.console import print_table
from recyclegpt.hardware.device import warn_contended

Row = dict[str, Any]
COLUMNS = {
    "category": "category", "strategy": "strategy", "drafter": "drafter", "recycle_num_layers": "depth",
    "draft_vocab": "draft vocabulary", "draft_dtype": "draft dtype", "num_recycled": "m", "adaptive": "adaptive",
    "batch": "batch", "prompt_tokens": "prompt", "new_tokens": "new", "dtype": "dtype", "compile": "compile",
    "num_prompts": "prompts", "tokens_per_s": "tokens/s", "spread": "from-to", "speedup": "speedup",
    "speedup_spread": "from-to", "speedup_interval": "95%", "ceiling_measured": "ceiling", "ceiling_bytes": "by bytes",
    "mean_accepted_length": "mean accepted length", "acceptance": "acceptance", "acceptance_by_position": "by position",
    "agreement": "agreement", "equal": "equal", "repetitive": "repetitive", "verify_cost": "verify cost",
    "draft_cost": "draft cost", "bandwidth_share": "bandwidth", "time_to_first_token_s": "first s",
}  # fmt: skip
SHAPE = ("recycle_num_layers", "batch", "prompt_tokens", "new_tokens", "dtype")


def print_rows(rows: list[Row], hardware: dict[str, Any], facts: list[str]) -> None:
    """The rows of a bench, less columns in which all are alike, and what they have in common."""
    varied = {"strategy", "num_recycled", "tokens_per_s"}
    varied |= {key for key in COLUMNS if len({str(row.get(key)) for row in rows}) > 1}
    print_table(
        [[_cell(key, row.get(key)) for key in COLUMNS if key in varied] for row in rows],
        header=[word for key, word in COLUMNS.items() if key in varied],
    )
    common = [f"{COLUMNS[key]} {rows[0][key]}" for key in SHAPE if key in rows[0] and key not in varied]
    print(f"\non {hardware['device']}, {hardware['threads']} threads; {', '.join(common)}", *facts, sep="\n")
    warn_contended(hardware)


def _cell(key: str, value: object) -> object:
    if isinstance(value, list):
        return ("-" if key.endswith(("spread", "interval")) else " ").join(f"{number:.3g}" for number in value) or None
    return value


def print_tables(tables: dict[str, Any]) -> None:
    """What `bench.tables` measured: a line each, by rows, draft vocabulary or position."""
    titles = {
        "verify_cost": "verify cost by rows", "draft_cost": "draft cost by draft vocabulary",
        "bandwidth_share": "share of the bandwidth", "ranks": "rank 1, 2, ..., lower of the backbone's token, draft",
        "coverage": "coverage of the most frequent ids",
    }  # fmt: skip
    print()
    for name, found in tables.items():
        if isinstance(found, float):
            print(f"{titles[name]}: {found:.2f}")
        elif isinstance(found, dict) and found:
            print(f"{titles[name]}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()))
        else:  # ranks, by position
            for place, shares in enumerate(found, start=1):
                print(f"{titles[name]} {place}: " + " ".join(f"{share:.3f}" for share in shares))
