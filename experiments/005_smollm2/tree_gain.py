"""What a tree of drafted tokens would gain over a chain, by measured costs and ranks. Nothing is decoded here.

    recyclegpt bench checkpoint=... prompts=FILE bench.tables=true bench.num_recycled=[5] output_dir=OUT
    python tree_gain.py OUT/prompts.json

A node of the tree is a choice of the drafter after its parent, ranked r; it is accepted if its parent is and the
backbone's token has rank r at that depth. The best tree of N nodes and depth d comes from Sequoia's dynamic programming
(Chen et al., arXiv 2402.12374, section 3.1) over these shares, its speed from the measured cost of a pass over N rows
and d draft calls. A call for several nodes is charged as one for a single row, so the tree's gain is an upper bound.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROWS = 32


class Plan(NamedTuple):
    """A tree or chain and what it gives."""

    speedup: float
    rows: int
    depth: int
    mean_accepted_length: float
    shape: str


def best_trees(ranks: Sequence[Sequence[float]], depth: int, width: int, rows: int) -> list[tuple[float, str]]:
    """Expected tokens of a step, and the shape, of the best tree of 1, 2, ..., `rows` nodes, the root among them.

    `ranks[k][r]` is the share of the tokens drafted at depth k + 1 whose choice of rank r + 1 is the backbone's. No
    node has more than `width` children. A shape is that of a root's children in brackets: `(()())` has two.
    """

    @functools.cache
    def node(level: int, size: int) -> tuple[float, str]:
        """A node and its descendants, `size` in all."""
        tokens, shape = children(level, 0, size - 1)
        return 1 + tokens, f"({shape})"

    @functools.cache
    def children(level: int, rank: int, size: int) -> tuple[float, str]:
        """`size` nodes below one at `level`, in the subtrees of its choices from `rank` on."""
        if not size:
            return 0.0, ""
        if level == depth or rank == min(width, len(ranks[level])):
            return float("-inf"), ""
        options = []
        for here in range(1, size + 1):
            tokens, shape = node(level + 1, here)
            others, rest = children(level, rank + 1, size - here)
            options.append((ranks[level][rank] * tokens + others, shape + rest))
        return max(options)

    return [node(0, size) for size in range(1, rows + 1)]


def plan(ranks: Sequence[Sequence[float]], verify_cost: dict[int, float], draft_cost: float, width: int) -> Plan:
    """The fastest tree whose nodes have at most `width` children; of width 1 it is a chain."""
    found = []
    for depth in range(1, len(ranks) + 1):
        for rows, (tokens, shape) in enumerate(best_trees(ranks, depth, width, ROWS), start=1):
            rho = float(np.interp(rows, list(verify_cost), list(verify_cost.values())))
            found.append(Plan(tokens / (rho + depth * draft_cost), rows, depth, tokens, shape))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path, help="prompts.json of a bench with bench.tables=true")
    parser.add_argument("--draft-cost", type=float, help="in place of the measured one")
    arguments = parser.parse_args()
    document = json.loads(arguments.document.read_text())
    tables = document["tables"]
    ranks = [shares[:-1] for shares in tables["ranks"]]  # the last is what no choice hits
    verify_cost = {int(rows): cost for rows, cost in tables["verify_cost"].items()}
    draft_cost = arguments.draft_cost
    if draft_cost is None:
        costs = {int(size): cost for size, cost in tables["draft_cost"].items()}
        draft_cost = float(
            np.interp(document["rows"][0]["draft_vocab"] or max(costs), list(costs), list(costs.values()))
        )
    print(f"a pass over 4, 8, 16 rows costs {', '.join(f'{verify_cost[n]:.2f}' for n in (4, 8, 16))}, "
          f"a draft call {draft_cost:.3f} of a pass over one")  # fmt: skip
    chain, tree = (plan(ranks, verify_cost, draft_cost, width) for width in (1, 4))
    for name, it in (("chain", chain), ("tree", tree)):
        print(f"best {name}: {it.rows} rows, depth {it.depth}, mean accepted length {it.mean_accepted_length:.2f}, "
              f"{it.speedup:.2f}x  {it.shape}")  # fmt: skip
    print(f"a tree gains at most {tree.speedup / chain.speedup - 1:.1%} over a chain")


if __name__ == "__main__":
    main()
