"""Fast paths against their slow twins on the device at hand: a speed counts only where the result is right.

Each check measures how far the fast path and its twin lie from the same computation in fp64; the fast path may be twice
as far off as the twin. Texts have to be equal. The tests hold the same on a CPU; this is for devices they never see.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recyclegpt.decoding import Autoregressive, Decoder, Verified, cuda_kernels, fuse, kernels
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT, StaticCache
from recyclegpt.models.cache import UnrolledMemory
from recyclegpt.models.unrolled_attention import causal_and_own
from recyclegpt.training import DualLoss, LossConfig
from recyclegpt.training.cross_entropy import chunked_cross_entropy
from recyclegpt.training.muon import Muon
from recyclegpt.training.per_layer import compile_layers

SHAPE = ModelConfig(4096, 512, num_layers=3, hidden_size=768, num_heads=12, num_kv_heads=4, intermediate_size=2048)
TINY = ModelConfig(64, 64, num_layers=2, hidden_size=64, num_heads=2, num_kv_heads=1, intermediate_size=64)
TIMES_THE_TWIN = 2.0
"""How much farther from the truth than its twin a fast path may be; they round at different places."""


class Found(NamedTuple):
    """Distance of a fast path from the truth, and the most that is allowed."""

    error: float
    allowed: float


def device_checks(device: torch.device, tiny: bool = False, only: str = "") -> list[dict[str, Any]]:
    """A row for each check: its name, error, what is allowed, whether it passed, and why not where it failed to run.

    Args:
        device: what to check.
        tiny: a small model and nothing compiled, for seconds on a CPU.
        only: leave out the checks whose name does not hold this.
    """
    checks: dict[str, Callable[[RecycleGPT], Found]] = {
        "decoding: logits of cached passes": cached_logits,
        "decoding: verified text is autoregressive text": verified_text,
        "training: attention of unrolled steps": unrolled_attention,
        "training: Muon in batched products": batched_muon,
        "training: cross entropy in chunks": cross_entropy,
        "training: gradients of compiled layers": compiled_gradients,
    }
    if device.type == "cuda":
        checks["decoding: text from CUDA graphs"] = graphed_text
    if tiny:
        checks.pop("training: gradients of compiled layers")
    rows = []
    for name, check in checks.items():
        if only not in name:
            continue
        torch.manual_seed(0)
        with device:
            model = RecycleGPT(TINY if tiny else SHAPE, RecycleConfig(num_layers=2)).eval()
        for parameter in model.parameters():  # zeros would hide what the layers do
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.05)
            parameter.data = parameter.data.bfloat16().float()  # so that casting loses nothing
        try:
            error, allowed = check(model)
            rows.append({"check": name, "error": error, "allowed": allowed, "passed": error <= allowed, "why": None})
        except Exception as problem:  # noqa: BLE001 - whatever ends one check is its result
            why = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
            rows.append({"check": name, "error": None, "allowed": None, "passed": False, "why": why})
    return rows


@torch.no_grad()
def cached_logits(model: RecycleGPT) -> Found:
    """Passes of one and of several tokens over a static cache, in bf16, after a prompt."""
    tokens = torch.randint(model.config.vocab_size, (2, 40), device=model.device)
    exact = copy.deepcopy(model).double()
    truth = exact.classify(exact.read(tokens))[:, 20:]

    def run(fast: bool) -> Tensor:
        fused = fuse(model, torch.bfloat16, use_kernels=fast)
        cache = StaticCache(model.config, model.config.num_layers, 2, 64, torch.bfloat16, model.device)
        states = []
        for begin, end in [
            (0, 20),
            *((at, at + 1) for at in range(20, 28)),
            *((at, at + 4) for at in range(28, 40, 4)),
        ]:
            positions = torch.arange(begin, end, device=model.device).expand(2, -1)
            states.append(fused.read(tokens[:, begin:end], positions, cache=cache, num_read=64))
        return fused.classify(torch.cat(states[1:], dim=1))

    return Found(_distance(run(True), truth), TIMES_THE_TWIN * _distance(run(False), truth))


def verified_text(model: RecycleGPT) -> Found:
    """Share of tokens that differ, greedy, in bf16 where a row's result does not depend on the rows beside it."""
    exact = kernels.usable(model.device, torch.bfloat16) or cuda_kernels.usable(model.device, torch.bfloat16)
    decoder = Decoder.optimised(model, torch.bfloat16 if exact else torch.float64)
    expected = _texts(decoder, model, Autoregressive())
    return Found(max(_differing(_texts(decoder, model, Verified(m)), expected) for m in (1, 3)), 0.0)


def graphed_text(model: RecycleGPT) -> Found:
    """Share of tokens that differ from those of cycles that run one by one."""
    decoder = Decoder.optimised(model, torch.bfloat16)
    found = _texts(decoder, model, Verified(2))
    decoder.forget()
    decoder.use_graphs = False
    return Found(_differing(found, _texts(decoder, model, Verified(2))), 0.0)


def unrolled_attention(model: RecycleGPT) -> Found:
    """Output and gradients of the third step's attention, the largest distance of the four."""
    B, T, H, D = 2, model.config.context_length // 4, model.config.num_heads, model.config.head_dim
    given = [torch.randn(B, H, size, D, device=model.device).bfloat16() for size in (T, 3 * T, 3 * T, T)]

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=UnrolledMemory.mask(3, first))

    def run(attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in given[:3]]
        output = attend(*inputs)
        return [output, *torch.autograd.grad(output, inputs, given[3].to(dtype))]

    truth = run(masked, torch.float64)
    fast, twin = run(causal_and_own, torch.bfloat16), run(masked, torch.bfloat16)
    return _beside_twin(fast, twin, truth)


def batched_muon(model: RecycleGPT) -> Found:
    """The update of stacked matrices against torch's, matrix by matrix; both orthogonalise in bf16."""
    width = model.config.hidden_size
    weights = [torch.randn(width, size, device=model.device) for size in (width, 2 * width) for _ in range(3)]
    grads = [torch.randn_like(weight) for weight in weights]
    after = []
    for batched in (False, True):
        copies = [torch.nn.Parameter(weight.clone()) for weight in weights]
        optimizer = Muon(copies, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        for weight, grad in zip(copies, grads, strict=True):
            weight.grad = grad.clone()
        optimizer.step_batched() if batched else torch.optim.Muon.step(optimizer)
        after.append([new.detach() - old for new, old in zip(copies, weights, strict=True)])
    return Found(max(_distance(a, b) for a, b in zip(after[1], after[0], strict=True)), 0.02)


def cross_entropy(model: RecycleGPT) -> Found:
    """Gradients of states and classifier, compiled on CUDA, against the plain loss in fp64 and, in bf16, its twin."""
    rows, vocab = 200, model.config.vocab_size
    state = torch.randn(rows, model.config.hidden_size, device=model.device).bfloat16()
    head, label = model.lm_head.weight.detach().bfloat16(), torch.randint(vocab, (rows,), device=model.device)
    scale = torch.full((rows,), 1 / rows, device=model.device)

    def gradients(loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
        inputs = [state.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()]
        yield from torch.autograd.grad(loss(*inputs), inputs)

    def plain(state: Tensor, head: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(state, head), label)

    def chunked(state: Tensor, head: Tensor) -> Tensor:
        compiled = model.device.type == "cuda"
        return chunked_cross_entropy(state, head, label, scale, chunk_size=64, compile=compiled).total

    truth, twin = list(gradients(plain, torch.float64)), list(gradients(plain, torch.bfloat16))
    fast = list(gradients(chunked, torch.bfloat16))
    return _beside_twin(fast, twin, truth)


def compiled_gradients(model: RecycleGPT) -> Found:
    """All gradients of an unrolled dual loss in bf16, layers and loss compiled, against fp64 and, in bf16, eager."""
    views = torch.randint(model.config.vocab_size, (5, 2, model.config.context_length // 2), device=model.device)
    settings = LossConfig(num_unrolled=3)

    def gradients(model: RecycleGPT, compiled: bool, narrow: bool) -> Tensor:
        model = copy.deepcopy(model).train()
        if compiled:
            compile_layers(model)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=narrow):
            DualLoss(settings, compiled)(model, views).loss.backward()
        return torch.cat([weight.grad.flatten().double() for weight in model.parameters() if weight.grad is not None])

    truth = gradients(copy.deepcopy(model).double(), compiled=False, narrow=False)
    fast, twin = (gradients(model, compiled, narrow=True) for compiled in (True, False))
    return Found(_distance(fast, truth), TIMES_THE_TWIN * _distance(twin, truth))


def _beside_twin(fast: list[Tensor], twin: list[Tensor], truth: list[Tensor]) -> Found:
    """How many times as far from the truth as its twin the worst tensor is."""
    triples = zip(fast, twin, truth, strict=True)
    return Found(max(_distance(a, t) / max(_distance(b, t), 1e-9) for a, b, t in triples), TIMES_THE_TWIN)


def _texts(decoder: Decoder, model: RecycleGPT, strategy: Autoregressive | Verified) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(model.config.vocab_size, (4, 12), generator=generator).tolist()
    return [decoder.generate([prompt], strategy, model.config.context_length // 2).tokens[0] for prompt in prompts]


def _differing(found: list[list[int]], expected: list[list[int]]) -> float:
    pairs = [pair for ours, theirs in zip(found, expected, strict=True) for pair in zip(ours, theirs, strict=True)]
    return sum(ours != theirs for ours, theirs in pairs) / len(pairs)


def _distance(found: Tensor, truth: Tensor) -> float:
    """Relative, in the Euclidean norm; NaN counts as infinitely far."""
    found, truth = found.detach().double(), truth.detach().double()
    distance = float((found - truth).norm() / truth.norm())
    return distance if distance == distance else float("inf")
