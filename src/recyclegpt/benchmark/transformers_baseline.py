"""The outside baseline: `transformers`' own `generate`, on the same backbone weights. Optional; imported on request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recyclegpt.benchmark.speed import Run
from recyclegpt.errors import ConfigError
from recyclegpt.hardware.measure import synchronise
from recyclegpt.models import RecycleGPT
from recyclegpt.models.huggingface.llama_layout import backbone_config, backbone_weights

SETTLING = 8
"""First tokens of a text, on which the compiled setting is not timed: a new cache has new addresses, for which its CUDA
graphs are recorded again."""
SETTINGS = ("dynamic", "static", "static compiled")
"""Caches that `generate` offers; the last also compiles the forward pass, once."""


def in_transformers(model: RecycleGPT) -> Any:
    """The model of `transformers` with the weights of this backbone, in their dtype and on their device.

    Raises:
        ConfigError: `transformers` is not installed, or has no model family equal to this backbone.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise ConfigError("bench.baselines: transformers is not installed; pip install 'recyclegpt[hf]'") from error
    try:
        config = AutoConfig.for_model(**backbone_config(model.config, model.dtype))
    except ConfigError as error:
        raise ConfigError(
            f"bench.baselines: transformers has no model like this backbone ({error.problems[0]}); leave it out"
        ) from error
    with torch.device(model.device):
        made: Any = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    made.load_state_dict({"lm_head.weight": model.lm_head.weight.detach(), **backbone_weights(model)})
    return made.eval()


def make_runs(
    model: RecycleGPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch: int
) -> dict[str, Callable[[], Run]]:
    """One measurement of greedy `generate` for each of `SETTINGS`; call each once to warm it up."""
    made = in_transformers(model)
    return {setting: partial(_generate, made, prompts, max_new_tokens, batch, setting) for setting in SETTINGS}


@torch.no_grad()
def _generate(made: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch: int, setting: str) -> Run:
    from transformers import CompileConfig, StoppingCriteria, StoppingCriteriaList

    device = made.device
    steps: list[float] = []

    class Stamp(StoppingCriteria):
        """Called once per token: the only hook that also works for batches."""

        def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
            if len(steps) in (0, settled, max_new_tokens - 1):
                synchronise(device)
            steps.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=device)

    options: dict[str, Any] = {} if setting == "dynamic" else {"cache_implementation": "static"}
    compiled = setting == "static compiled"
    settled = min(SETTLING, (max_new_tokens - 1) // 2) if compiled else 0
    if compiled:
        # CUDA graphs, as `generate` chooses itself on a GPU; a CPU has none.
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        options["compile_config"] = CompileConfig(mode=mode, fullgraph=False)
        # Otherwise `generate` compiles on accelerators only, and this baseline should be as fast as it can be.
        options["compile_config"]._compile_all_devices = True
    run = Run()
    for begin_row in range(0, len(prompts), batch):
        rows = torch.tensor([list(prompt) for prompt in prompts[begin_row : begin_row + batch]], device=device)
        steps.clear()
        synchronise(device)
        begin = time.perf_counter()
        made.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=max_new_tokens,
            min_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=0,
            disable_compile=not compiled,
            stopping_criteria=StoppingCriteriaList([Stamp()]),
            **options,
        )
        run.num_timed += len(rows) * (len(steps) - 1 - settled)
        run.num_passes += len(steps) - 1 - settled
        run.seconds += steps[-1] - steps[settled]
        run.first_token_s += (steps[0] - begin) / -(-len(prompts) // batch)
    return run
