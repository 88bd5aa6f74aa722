"""How fast each kernel for CUDA streams its weights, beside torch's own product and a plain copy: what to tune by.

Every call is timed inside a CUDA graph over weights that together are far larger than the L2 cache, one after another,
as a pass over a model's layers reads them; so the gap between two kernels counts too.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recyclegpt.decoding import fuse
from recyclegpt.decoding.cuda_kernels import sizes
from recyclegpt.decoding.cuda_kernels.sizes import Sizes, sizes_of
from recyclegpt.decoding.graph import without_gc
from recyclegpt.evaluation.bandwidth import CopyTimer
from recyclegpt.evaluation.ceilings import backbone_bytes
from recyclegpt.evaluation.stopwatch import Stopwatch
from recyclegpt.models import ModelConfig, RecycleGPT, StaticCache

SET_BYTES = 2**30
"""Weights that are read in turn; the L2 cache of an H200 holds 50 MB."""
SHARED_BYTES = 227 * 1024
"""Shared memory of a multiprocessor, Hopper's: candidates that need more are left out."""

WAYS = [{"fetch": fetch, "overlap": overlap} for overlap in (False, True) for fetch in (False, True)]
"""In which kernels are launched (`sizes.Launch`)."""

Timer = Callable[[Sequence[Callable[[], object]]], float]
"""Seconds of a call, given calls that do the same on different weights."""


@dataclass(frozen=True)
class Product:
    """A weight of a layer and the kernel that reads it."""

    name: str
    outputs: int
    inputs: int
    halves: int = 1

    def candidates(self) -> Iterator[Sizes]:
        """The sizes in use, and others that fit."""
        used = sizes_of(self.outputs, self.inputs, self.halves)
        yield used
        for outputs, parts, stages in itertools.product((8, 16, 32, 64), (4, 8), (3, 4, 6)):
            how = Sizes(outputs, parts, stages=stages)
            # Sixteen pairs at most, since half a head may be no wider.
            paired = self.halves == 1 or (outputs in (16, 32) and self.outputs % outputs == 0)
            if how != used and paired and how.shared_bytes(rows=16 * self.halves) <= SHARED_BYTES:
                yield how


def products(config: ModelConfig) -> list[Product]:
    """The products of one pass, each shape once."""
    width, heads = config.hidden_size, config.num_heads * config.head_dim
    return [
        Product("qkv_proj", heads + 2 * config.num_kv_heads * config.head_dim, width, 2),
        Product("o_proj", width, heads),
        Product("gate_up_proj", 2 * config.intermediate_size, width, 2),
        Product("down_proj", width, config.intermediate_size),
        Product("fc", width, 2 * width),
        Product("lm_head", config.vocab_size, width),
    ]


def kernel_bandwidth(
    config: ModelConfig,
    device: torch.device,
    rows: Sequence[int] = (1, 2),
    num_read: int = 1024,
    tune: bool = False,
    timer: Timer | None = None,
    copy_bytes_per_s: float | None = None,
) -> list[dict[str, Any]]:
    """A row for each kernel, number of rows, sizes and way to launch.

    Args:
        config: shape of the model.
        device: a CUDA device with Triton (`cuda_kernels.usable`).
        rows: of a pass; attention has one text, so many tokens.
        num_read: slots of the cache, all of them read.
        tune: time other sizes than those in use as well, some twenty a product; each takes a second to compile.
        timer: stands in for CUDA graphs and events.
        copy_bytes_per_s: what to compare with, measured if None.

    Returns:
        kernel, outputs, inputs, rows, sizes (None: torch's product, or attention), fetch and overlap (`Launch`),
        seconds, bytes read, bytes_per_s, and of_copy: their share of a copy's, which counts bytes read and written.
    """
    from recyclegpt.decoding.cuda_kernels import operators

    timer = timer or graph_seconds
    if copy_bytes_per_s is None:
        copies = CopyTimer(device)
        copies.measure(10)
        copy_bytes_per_s = copies.bytes_per_s
    found: list[dict[str, Any]] = []

    def add(name: str, shape: tuple[int, int], n: int, how: Sizes | None, num_bytes: int,
            calls: Sequence[Callable[[], object]], ways: Sequence[dict[str, bool]] = WAYS) -> None:  # fmt: skip
        for way in ways:
            with sizes.launching(**way):
                seconds = timer(calls)
            found.append({
                "kernel": name, "outputs": shape[0], "inputs": shape[1], "rows": n,
                "sizes": asdict(how) if how else None, "fetch": False, "overlap": False, **way, "seconds": seconds,
                "bytes": num_bytes, "bytes_per_s": num_bytes / seconds,
                "of_copy": num_bytes / seconds / copy_bytes_per_s,
            })  # fmt: skip

    for product in products(config):
        shape = product.outputs, product.inputs
        num_bytes = 2 * product.outputs * product.inputs
        weights = [torch.randn(shape, device=device).bfloat16() for _ in range(-(-SET_BYTES // num_bytes))]
        following = weights[1:] + weights[:1]
        # Queries are timed as gates are: what is rotated and where it is stored costs no bytes to speak of.
        operator, eps = (operators.gated, 1e-5) if product.halves == 2 else (operators.linear, None)
        for n in rows:
            x = torch.randn(n, product.inputs, device=device).bfloat16()
            add(f"torch {product.name}", shape, n, None, num_bytes, [_call(F.linear, x, w) for w in weights], [{}])
            for how in product.candidates() if tune else [sizes_of(*shape, product.halves)]:
                calls = [
                    _call(operator, x, weight, eps=eps, then=then, how=how)
                    for weight, then in zip(weights, following, strict=True)
                ]
                add(product.name, shape, n, how, num_bytes, calls)
    heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
    num_bytes = 4 * kv_heads * num_read * width
    caches = [
        torch.randn(2, 1, kv_heads, num_read, width, device=device).bfloat16()
        for _ in range(-(-SET_BYTES // num_bytes))
    ]
    for n in rows:
        q = torch.randn(1, n, heads, width, device=device).bfloat16()
        positions = torch.arange(num_read - n, num_read, device=device)[None]
        calls = [_call(operators.attend, q, key, value, positions, num_read) for key, value in caches]
        add("attend", (heads * width, num_read), n, None, num_bytes, calls, WAYS[::2])
    del caches
    # The figure that decides how to launch: all layers and the classifier, straight after one another.
    fused = _untrained(config, device)
    cache = StaticCache(config, config.num_layers, 1, num_read, fused.dtype, device)
    for n in rows:
        tokens = torch.zeros(1, n, dtype=torch.long, device=device)
        positions = torch.arange(num_read - n, num_read, device=device)[None]
        call = _call(_pass, fused, tokens, positions, cache, num_read)
        add("whole pass", (config.vocab_size, config.hidden_size), n, None, backbone_bytes(fused), [call])
    return found


def _untrained(config: ModelConfig, device: torch.device) -> RecycleGPT:
    """A backbone ready to decode in bf16; made on the device and in bf16, since it may be large."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = RecycleGPT(config)
    finally:
        torch.set_default_dtype(default)
    return fuse(model, torch.bfloat16, release=True)


@torch.no_grad()
def _pass(model: RecycleGPT, tokens_BT: Tensor, positions_BT: Tensor, cache: StaticCache, num_read: int) -> Tensor:
    return model.classify(model.read(tokens_BT, positions_BT, cache=cache, num_read=num_read))


def _call(function: Callable[..., Tensor], *arguments: Any, **named: Any) -> Callable[[], Tensor]:
    return lambda: function(*arguments, **named)


def graph_seconds(calls: Sequence[Callable[[], object]], replays: int = 7) -> float:
    """Seconds of one of the calls, the median over replays of a CUDA graph that holds all of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with without_gc(), torch.cuda.graph(graph):
        for call in calls:
            call()
    # Queued behind a busy device: else the time that the host takes to launch a graph would be in every figure.
    seconds = Stopwatch(torch.device("cuda")).seconds(*[graph.replay] * (replays + 1))
    return statistics.median(seconds[1:]) / len(calls)
