"""What a GPU should reach, and what it reached: the targets of `recyclegpt gpu-report`, from the rows it measured.

A target that was not measured is neither met nor missed, and says which part of the report would measure it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from recyclegpt.reporting.plain_values import number

Row = Mapping[str, Any]
Parts = Mapping[str, Mapping[str, Any]]
Found = tuple[float, str] | None
"""A value and what it was measured on; None: it was not measured."""

PAPER = "paper_1b3"
PAPER_DEPTH = 6
"""Layers of the paper's module."""


@dataclass(frozen=True)
class Target:
    """One line of the table."""

    name: str
    part: str
    """Which part of the report measures it."""
    value: float | None
    target: float
    at: Literal["least", "most"]
    unit: Literal["share", "times"]
    source: str
    """Which measurement the value is; of one that is missing, why."""

    @property
    def met(self) -> bool | None:
        """None: not measured."""
        if self.value is None:
            return None
        return self.value >= self.target if self.at == "least" else self.value <= self.target

    @property
    def verdict(self) -> str:
        """`met`, `missed` or `not measured`."""
        return {True: "met", False: "missed", None: "not measured"}[self.met]

    def shown(self, value: float | None) -> str:
        """A value as people read it: `71.2%` or `1.54x`."""
        if value is None:
            return "-"
        return f"{value:.1%}" if self.unit == "share" else f"{value:.2f}x"

    def as_row(self) -> dict[str, Any]:
        """For a table or a file."""
        return asdict(self) | {"met": self.met, "verdict": self.verdict}


def gpu_targets(parts: Parts) -> list[Target]:
    """Every target, with the value that these parts of a report hold for it.

    Args:
        parts: of `report.json`: by name, each with its `rows` and `status`.
    """
    return [_target(parts, *line) for line in _LINES]


def _target(
    parts: Parts,
    name: str,
    part: str,
    at: Literal["least", "most"],
    target: float,
    unit: Literal["share", "times"],
    find: Callable[[Mapping[str, Any]], Found],
) -> Target:
    held = parts.get(part, {})
    found = find(held)
    if found is None:
        return Target(name, part, None, target, at, unit, why_missing(part, held))
    return Target(name, part, found[0], target, at, unit, found[1])


def why_missing(part: str, held: Mapping[str, Any]) -> str:
    """Why a part has no value: it was not begun, or something in it failed."""
    reasons = dict.fromkeys(str(call["error"]) for call in held.get("calls", []) if call.get("error"))
    if reasons:
        return f"{part}: {'; '.join(reasons)}"
    return f"{part} was not run" if held.get("status") in (None, "not run") else f"{part} holds no such row"


def decode_row(rows: Iterable[Row], shape: str, strategy: str, **where: Any) -> Row | None:
    """The first bf16 row at batch 1 of a shape and decoder for which `where` holds as well.

    Where a shape was measured more than once, the measurement with the outside baseline comes first: its rates are
    compared with that baseline in one run.
    """
    found = [
        row
        for row in rows
        if row.get("shape") == shape
        and row.get("strategy") == strategy
        and row.get("batch") == 1
        and all(row.get(key) == value for key, value in where.items())
    ]
    return min(found, key=lambda row: row.get("call") != "baseline", default=None)


def _bandwidth(held: Mapping[str, Any]) -> Found:
    row = decode_row(held.get("rows", ()), PAPER, "autoregressive")
    return _value(row, "bandwidth_utilisation", "autoregressive, batch 1, of the bandwidth of a copy in the same run")


def _alternating(held: Mapping[str, Any]) -> Found:
    row = decode_row(held.get("rows", ()), PAPER, "alternating", num_recycled=1, recycle_num_layers=PAPER_DEPTH)
    return _value(row, "speedup", f"module of {PAPER_DEPTH} layers, 1 recycled token, batch 1")


def _of_ceiling(held: Mapping[str, Any]) -> Found:
    row = decode_row(held.get("rows", ()), PAPER, "alternating", num_recycled=1, recycle_num_layers=PAPER_DEPTH)
    speedup, ceiling = _number(row, "speedup"), _number(row, "ceiling_bytes")
    if not speedup or not ceiling:
        return None
    return speedup / ceiling, f"{speedup:.2f}x measured, {ceiling:.2f}x by bytes"


def _over_transformers(caches: Sequence[str]) -> Callable[[Mapping[str, Any]], Found]:
    def find(held: Mapping[str, Any]) -> Found:
        rows = held.get("rows", ())
        outside = decode_row(rows, PAPER, "transformers")
        ours = None if outside is None else decode_row(rows, PAPER, "autoregressive", call=outside.get("call"))
        rates = {} if outside is None else outside.get("tokens_per_s_by_cache", {})
        theirs = {cache: rate for cache in caches if (rate := number(rates.get(cache)))}
        mine = _number(ours, "tokens_per_s")
        if not theirs or not mine:
            return None
        best = max(theirs, key=lambda cache: theirs[cache])
        return mine / theirs[best], f"autoregressive {mine:.0f} tokens/s, theirs {theirs[best]:.0f} ({best} cache)"

    return find


def _lossless(only: int | None) -> Callable[[Mapping[str, Any]], Found]:
    def find(held: Mapping[str, Any]) -> Found:
        rows = [
            row
            for row in held.get("rows", ())
            if row.get("strategy") == "verified"
            and row.get("batch") == 1
            and not row.get("acceptance_given")
            and only in (None, row.get("num_recycled"))
            and _number(row, "speedup")
        ]
        if not rows:
            return None
        best = max(rows, key=lambda row: row["speedup"])
        kept = number(best.get("acceptance"))
        accepted = "" if kept is None else f", {kept:.1%} of the recycled tokens accepted"
        return best["speedup"], f"held-out prompts, num_recycled={best.get('num_recycled')}{accepted}"

    return find


def _mfu(held: Mapping[str, Any]) -> Found:
    rows = [row for row in held.get("rows", ()) if row.get("shape") == "gpt_350m" and row.get("recycle_num_layers")]
    return _value(rows[0] if rows else None, "mfu", "with module and dual loss, of the dense bf16 peak")


def _module_time(held: Mapping[str, Any]) -> Found:
    excess = {
        str(row.get("shape")): time - flops
        for row in held.get("rows", ())
        if (time := _number(row, "time_share")) is not None and (flops := _number(row, "flops_share")) is not None
    }
    if not excess:
        return None
    worst = max(excess, key=lambda shape: excess[shape])
    return excess[worst], f"share of time less share of FLOPs; the largest, {worst}, of {', '.join(excess)}"


def _monitor(held: Mapping[str, Any]) -> Found:
    share = number(held.get("monitor_share"))
    if share is None:
        return None
    return share, f"{len(held.get('decoding', ()))} epochs: seconds of decoding over seconds of training"


def _value(row: Row | None, key: str, source: str) -> Found:
    value = _number(row, key)
    return None if value is None else (value, source)


def _number(row: Row | None, key: str) -> float | None:
    return None if row is None else number(row.get(key))


_LINES: tuple[
    tuple[str, str, Literal["least", "most"], float, Literal["share", "times"], Callable[[Mapping[str, Any]], Found]],
    ...,
] = (
    (f"{PAPER}: autoregressive decoding, share of copy bandwidth", "decode", "least", 0.70, "share", _bandwidth),
    (f"{PAPER}: alternating over autoregressive", "decode", "least", 1.5, "times", _alternating),
    (f"{PAPER}: alternating, share of its byte ceiling", "decode", "least", 0.93, "share", _of_ceiling),
    (
        f"{PAPER}: over transformers' eager generate", "decode", "least", 4.0, "times",
        _over_transformers(("dynamic", "static")),
    ),
    (
        f"{PAPER}: over transformers' compiled generate", "decode", "least", 1.0, "times",
        _over_transformers(("static compiled",)),
    ),
    ("trained model: lossless, one recycled token", "trained", "least", 1.5, "times", _lossless(1)),
    ("trained model: lossless, best number of recycled tokens", "trained", "least", 2.0, "times", _lossless(None)),
    ("gpt_350m: training MFU with dual loss", "training", "least", 0.45, "share", _mfu),
    ("the module's time beyond its share of FLOPs", "training", "most", 0.05, "share", _module_time),
    ("the monitor's share of an epoch", "train", "most", 0.03, "share", _monitor),
)  # fmt: skip
"""Name, part, direction, bound, unit, and what finds the value."""
