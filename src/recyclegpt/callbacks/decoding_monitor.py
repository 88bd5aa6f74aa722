"""Decode after every validation epoch and log speed and quality of the three decoders side by side.

Every rank decodes the same prompts with its own copy of the model, without collectives, so none waits for another;
sharded weights are gathered by all ranks first. The random state of training is restored afterwards: training with the
monitor equals training without it, bit for bit.
"""

from __future__ import annotations

import copy
import html
import json
import math
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from recyclegpt.benchmark import PassCosts, Speed, byte_ceiling, measure_pass_costs, measure_speed
from recyclegpt.callbacks.rng import isolated_rng
from recyclegpt.callbacks.tensorboard import BY_POSITION, DESCRIPTIONS
from recyclegpt.decoding import Alternating, Autoregressive, Decoder, DecodingConfig, Strategy, Verified
from recyclegpt.evaluation import continuation_nll
from recyclegpt.files import write_whole
from recyclegpt.hardware.device import ExternalCpuLoad
from recyclegpt.models import RecycleGPT, named_dtype
from recyclegpt.training.layers import gathered

TAGS = tuple(tag for tag in DESCRIPTIONS if tag.startswith("decode/"))
"""Logged every validation epoch; NaN where a value does not apply or decoding was skipped."""


class DecodingMonitor(Callback):
    """Measures decoding on held-out prompts each validation epoch; the sanity check is left alone.

    Args:
        decoding: the settings of `conf/decoding`; of these the monitor uses `num_recycled`, `confidence_threshold`,
            `drafter` (of verified decoding), `dtype` and those of sampling. All three decoders are measured, whatever
            `strategy` says.
        folder: run folder for `decoding.jsonl`; none is written if null.
        num_prompts: held-out prompts, from different documents where there are enough.
        repetitions: rounds over prompts and decoders, after a warm-up.
        budget_s: seconds after which no further round begins.
        every_n_epochs: decode in every n-th validation epoch and in the last, never if 0; else the tags are NaN.
    """

    def __init__(
        self,
        decoding: DecodingConfig | Mapping[str, Any] | None = None,
        folder: str | None = None,
        num_prompts: int = 4,
        prompt_tokens: int = 64,
        new_tokens: int = 64,
        repetitions: int = 5,
        budget_s: float = 20.0,
        every_n_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        self.decoding = decoding if isinstance(decoding, DecodingConfig) else DecodingConfig(**(decoding or {}))
        self.folder = None if folder is None else Path(folder)
        self.num_prompts, self.prompt_tokens, self.new_tokens = num_prompts, prompt_tokens, new_tokens
        self.repetitions, self.budget_s, self.every_n_epochs, self.seed = repetitions, budget_s, every_n_epochs, seed
        self.others_cpu: float | None = None
        """Share of the processors that other processes took while decoding was last measured."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop rows newer than the checkpoint that the run resumes from: their epochs run again."""
        file = None if self.folder is None else self.folder / "decoding.jsonl"
        if file is None or not trainer.is_global_zero or not file.exists():
            return
        rows = file.read_text(encoding="utf-8").splitlines()
        write_whole(file, "".join(f"{row}\n" for row in rows if json.loads(row)["step"] <= trainer.global_step))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decode, log every tag, append a row to `decoding.jsonl`, show samples in TensorBoard."""
        if trainer.sanity_checking:
            return
        places = range(1, self.decoding.num_recycled + 1)
        metrics = dict.fromkeys([*TAGS, *(f"{BY_POSITION}{place}" for place in places)], math.nan)
        if self._is_due(trainer):
            begin = time.perf_counter()
            try:
                with isolated_rng(), torch.autocast(pl_module.device.type, enabled=False):
                    model = gathered(pl_module.model)  # type: ignore[arg-type]  # nn.Module gives its parts any type
                    with ExternalCpuLoad() as load:
                        speeds, costs, prompts = self._measure(trainer, model)
                    self.others_cpu = load.share
                    metrics |= self._metrics(model, speeds, costs, prompts)
                metrics["decode/seconds"] = time.perf_counter() - begin
                if trainer.is_global_zero:
                    self._write(trainer, metrics, speeds, prompts)
            except (RuntimeError, ValueError, MemoryError, OSError) as error:
                # A failed measurement must not end a training run: it is reported, and its tags stay NaN.
                reason = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=3)}"
                rank_zero_warn(f"decoding was not measured after step {trainer.global_step}: {reason}")
        for tag, value in metrics.items():
            pl_module.log(tag, value, sync_dist=False)

    def _is_due(self, trainer: Trainer) -> bool:
        every_n = trainer.check_val_every_n_epoch or 1
        # `CheckpointEverySteps` has set `should_stop` where `max_steps` ends the run.
        last = trainer.current_epoch + every_n >= (trainer.max_epochs or 0) or trainer.should_stop
        last = last or trainer.state.fn != TrainerFn.FITTING
        return self.every_n_epochs > 0 and (last or trainer.current_epoch // every_n % self.every_n_epochs == 0)

    def _measure(
        self, trainer: Trainer, model: RecycleGPT
    ) -> tuple[dict[str, Speed], PassCosts | None, list[list[int]]]:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning, declared nowhere
        prompts: list[list[int]] = datamodule.val_prompts(self.num_prompts, self.prompt_tokens).tolist()
        # A copy, so that weights are cast once and decoding's shapes never recompile the training forward.
        dtype = named_dtype(self.decoding.dtype, model.device, decoding=True)
        decoder = Decoder.optimised(model, dtype, draft_dtype=self.decoding.named_draft_dtype())
        strategies: list[Strategy] = [Autoregressive()]
        costs = None
        recycled = self.decoding.num_recycled, self.decoding.confidence_threshold
        verified = Verified(*recycled, self.decoding.drafter, self.decoding.adaptive)
        if model.recyclable is not None or not verified.needs_module:
            strategies.append(verified)
        if model.recyclable is not None:
            strategies.insert(1, Alternating(*recycled))
            costs = measure_pass_costs(decoder, self.decoding.num_recycled, self.prompt_tokens + self.new_tokens // 2)
        how = (self.new_tokens, self.decoding.sampling(), self.repetitions, self.budget_s, self.seed)
        return measure_speed(decoder, prompts, strategies, *how), costs, prompts

    def _metrics(
        self, model: RecycleGPT, speeds: dict[str, Speed], costs: PassCosts | None, prompts: list[list[int]]
    ) -> dict[str, float]:
        # A copy is not compiled: scoring texts of other lengths would recompile the training graph.
        model = copy.deepcopy(model).eval()
        plain = speeds["autoregressive"]
        metrics = {f"decode/tokens_per_s_{name}": speed.tokens_per_s for name, speed in speeds.items()}
        metrics["decode/nll_autoregressive"] = continuation_nll(model, prompts, plain.texts)
        acceptance = math.nan
        if (verified := speeds.get("verified")) is not None:
            acceptance = _or_nan(verified.counts.acceptance)
            metrics |= {
                "decode/speedup_verified": statistics.median(verified.speedups(plain)),
                "decode/acceptance": acceptance,
                "decode/mean_accepted_length": _or_nan(verified.counts.mean_accepted_length),
            }
            shares = enumerate(verified.counts.acceptance_by_position, start=1)
            metrics |= {f"{BY_POSITION}{place}": share for place, share in shares}
        if costs is not None:
            alternating = speeds["alternating"]
            metrics |= {
                "decode/speedup_alternating": statistics.median(alternating.speedups(plain)),
                "decode/ceiling_alternating": costs.ceiling(),
                "decode/ceiling_verified": costs.ceiling(acceptance) if self.decoding.drafter == "module" else math.nan,
                "decode/ceiling_bytes": byte_ceiling(model, self.decoding.num_recycled),
                "decode/verify_cost": costs.verify_cost,
                "decode/draft_cost": costs.draft_cost,
                "decode/agreement": _or_nan(alternating.counts.agreement),
                "decode/nll_alternating": continuation_nll(model, prompts, alternating.texts),
            }
        return metrics

    def _write(
        self, trainer: Trainer, metrics: dict[str, float], speeds: dict[str, Speed], prompts: list[list[int]]
    ) -> None:
        if self.folder is not None:
            kept = {tag: value for tag, value in metrics.items() if not tag.startswith(BY_POSITION)}
            verified = speeds.get("verified")
            row: dict[str, Any] = {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                **{tag: value if math.isfinite(value) else None for tag, value in kept.items()},
                "acceptance_by_position": verified and verified.counts.acceptance_by_position,
                "drafter": verified and self.decoding.drafter,
                "num_recycled": self.decoding.num_recycled,
                "prompts": len(prompts),
                "prompt_tokens": self.prompt_tokens,
                "new_tokens": self.new_tokens,
                "dtype": self.decoding.dtype,
                "others_cpu": self.others_cpu,
                "repetitions": {name: speed.repetitions for name, speed in speeds.items()},
            }
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "decoding.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]  # as above
        tokenizer = datamodule.tokenizer
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and tokenizer is not None:
                for name, speed in speeds.items():
                    samples = zip(prompts, speed.texts, speed.drafted, strict=True)
                    text = "\n\n".join(marked_text(tokenizer.decode, *sample) for sample in samples)
                    logger.experiment.add_text(f"samples/{name}", text, trainer.global_step)


def marked_text(
    decode: Callable[[list[int]], str], prompt: list[int], text: list[int], recycled: list[bool], prompt_tail: int = 200
) -> str:
    """HTML of a prompt's end and its continuation, the prompt in italics, the module's tokens in bold.

    Runs of one writer are decoded together, so that a character of several tokens stays whole where one wrote it.
    """
    pieces = [f"<em>...{html.escape(decode(prompt)[-prompt_tail:])}</em>"]
    begin = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or recycled[end] != recycled[begin]:
            piece = html.escape(decode(text[begin:end]))
            pieces.append(f"<strong>{piece}</strong>" if recycled[begin] else piece)
            begin = end
    return "<pre>" + "".join(pieces) + "</pre>"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
