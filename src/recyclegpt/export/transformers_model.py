"""The model as a `transformers` model: forward with labels, and `generate` that recycles.

Its modules are those of a `RecycleGPT`, its decoders this package's own. Needs the extra `hf`. B batch, T positions,
C model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recyclegpt.decoding.decoder import Decoder
from recyclegpt.decoding.sampling import SamplingConfig
from recyclegpt.decoding.strategies import make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT
from recyclegpt.models.huggingface.own_layout import MODEL_TYPE, write_code
from recyclegpt.models.rope import Rotary

try:
    from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput
except ImportError as error:
    raise ImportError("transformers is not installed or older than 5; pip install 'recyclegpt[hf]'") from error

KNOWN_PARTS = (
    "RepetitionPenaltyLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "MinPLogitsWarper",
    "MaxLengthCriteria",
    "EosTokenCriteria",
)
"""What `transformers` derives from the settings that `SamplingConfig` and the decoders have themselves."""
OTHER_METHODS = (
    "prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha", "dola_layers", "return_dict_in_generate"
)  # fmt: skip
"""Settings that make `transformers` decode otherwise, or return something else."""


class RecycleGPTConfig(PreTrainedConfig):
    """`model` and `recycle` hold the fields of `ModelConfig` and `RecycleConfig`; everything else follows from them."""

    model_type = MODEL_TYPE
    # `transformers` turns every config into a dataclass, which would drop an `__init__`.
    model: dict[str, Any] | None = None
    recycle: dict[str, Any] | None = None

    def __post_init__(self, **others: Any) -> None:
        # `transformers` also builds a config without arguments, to find the defaults.
        shape = ModelConfig(**(self.model or {"vocab_size": 257}))
        depth = RecycleConfig(**(self.recycle or {"num_layers": 0}))
        self.model, self.recycle = asdict(shape), asdict(depth)
        # Under the names that `transformers` reads; these override the file.
        derived = {
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "max_position_embeddings": shape.context_length,
            "initializer_range": shape.init_std,
            "tie_word_embeddings": shape.tie_embeddings,
        }
        super().__post_init__(**(others | derived))


class RecycleGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """Backbone, module and LM head under the names they have in `RecycleGPT`, so that one file serves both."""

    config_class = RecycleGPTConfig
    base_model_prefix = ""
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}  # noqa: RUF012 - as `transformers` reads it
    _no_split_modules = ["TransformerLayer"]  # noqa: RUF012

    def __init__(self, config: RecycleGPTConfig) -> None:
        super().__init__(config)
        core = RecycleGPT(ModelConfig(**(config.model or {})), RecycleConfig(**(config.recycle or {})))
        self.backbone, self.recyclable = core.backbone, core.recyclable
        self.lm_head, self.rotary = core.lm_head, core.rotary
        # Not registered: it consists of the same modules, and would double every name.
        self.__dict__["core"] = core
        self.post_init()

    core: RecycleGPT

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """The backbone's logits `(B, T, V)`, and with `labels` `(B, T)` its mean loss, -100 left out.

        Without a KV cache: `generate` uses the decoders of this package, which have their own.
        """
        mask, positions_BT = None, position_ids
        if attention_mask is not None and not bool(attention_mask.all()):
            T = input_ids.shape[1]
            causal_TT = torch.ones(T, T, dtype=torch.bool, device=input_ids.device).tril()
            # A padded query attends to itself: softmax over nothing is NaN.
            own_TT = torch.eye(T, dtype=torch.bool, device=input_ids.device)
            mask = causal_TT & attention_mask[:, None, None, :].bool() | own_TT
            if positions_BT is None:
                positions_BT = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        logits_BTV = self.core.logits(self.core.backbone_states(input_ids, positions_BT, mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits_BTV)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """All tokens at every step: the slow path without recycling."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> None:
        """As in `transformers`, plus the code files that the folder needs to recycle."""
        super().save_pretrained(save_directory, **settings)
        write_code(Path(save_directory))

    def get_input_embeddings(self) -> nn.Module:
        return self.core.backbone.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.core.backbone.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = self.core.lm_head = new_embeddings

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Rotary):
            # Its tables are in no file, and stay in fp32: bf16 angles would be off by up to 1 in 256.
            module.float()
            module.fill()
        else:
            super()._init_weights(module)


def generate(
    *arguments: Any, model: RecycleGPTForCausalLM, streamer: Any = None, assistant_model: Any = None, **settings: Any
) -> Any:
    """`model.generate`, decoded by recycling; `strategy`, `num_recycled`, `confidence_threshold` are extra settings.

    `custom_generate/generate.py` of an exported folder offers this to `transformers`, which passes `model` by name
    together with `custom_generate` and `trust_remote_code`. See `recycle`.

    Raises:
        ConfigError: a setting asks for something that these decoders cannot do.
    """
    if streamer is not None:
        # `transformers` passes a streamer to its own methods only, so its reader would wait forever.
        raise ConfigError("streamer: not passed on to custom decoding; iterate over Decoder.stream instead")
    if assistant_model is not None:  # not passed on either, but dropped
        raise ConfigError("assistant_model: this model's own module drafts; leave it out")
    settings |= {"custom_generate": recycle}
    settings.pop("trust_remote_code", None)
    return GenerationMixin.generate(model, *arguments, **settings)


@torch.no_grad()
def recycle(
    model: RecycleGPTForCausalLM,
    input_ids: Tensor,
    logits_processor: Sequence[Any],
    stopping_criteria: Sequence[Any],
    generation_config: Any,
    strategy: str = "verified",
    num_recycled: int = 1,
    confidence_threshold: float = 0.0,
    **model_kwargs: Any,
) -> Tensor:
    """A decoding method for `generate(custom_generate=recycle)`: returns prompts and continuations, right-padded.

    Args:
        model: a `RecycleGPTForCausalLM`.
        input_ids: prompts `(B, T)`, padded where the attention mask is 0.
        logits_processor: made by `generate` from its settings.
        stopping_criteria: likewise.
        generation_config: max_length, eos_token_id, do_sample, temperature, top_k, top_p, min_p, repetition_penalty.
        strategy: `autoregressive`, `alternating` (not exact) or `verified` (lossless).
        num_recycled: tokens recycled per backbone pass.
        confidence_threshold: recycle while the product of the module's largest probabilities is above this.
        model_kwargs: `attention_mask` `(B, T)` is read.

    Raises:
        ConfigError: a setting asks for something that these decoders cannot do.
    """
    settings = generation_config
    if problems := _unsupported([*logits_processor, *stopping_criteria], settings):
        raise ConfigError(problems)
    real_BT = model_kwargs.get("attention_mask")
    real_BT = torch.ones_like(input_ids) if real_BT is None else real_BT
    prompts = [row[real.bool()].tolist() for row, real in zip(input_ids, real_BT, strict=True)]
    given: dict[str, Any] = {"repetition_penalty": settings.repetition_penalty}
    if settings.do_sample:
        temperature = 1.0 if settings.temperature is None else settings.temperature
        given |= {"temperature": temperature, "top_k": settings.top_k or None}
        given |= {"top_p": settings.top_p, "min_p": settings.min_p}
    sampling = SamplingConfig(**{key: value for key, value in given.items() if value is not None})
    ends = settings.eos_token_id
    stop_tokens = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    generation = _decoder(model).generate(
        prompts,
        make_strategy(strategy, num_recycled, confidence_threshold),
        settings.max_length - input_ids.shape[1],
        sampling,
        stop_tokens,
        # From the global generator, as for all sampling in `transformers`.
        seed=int(torch.randint(2**62, ())) if settings.do_sample else 0,
    )
    padding = settings.pad_token_id if settings.pad_token_id is not None else [*stop_tokens, 0][0]
    new_BT = input_ids.new_full((len(prompts), max(map(len, generation.tokens))), padding)
    for row, tokens in enumerate(generation.tokens):
        new_BT[row, : len(tokens)] = new_BT.new_tensor(tokens)
    return torch.cat([input_ids, new_BT], dim=1)


def _unsupported(parts: Sequence[Any], settings: Any) -> list[str]:
    """Names of settings that these decoders would otherwise ignore."""
    names = [type(part).__name__ for part in parts if type(part).__name__ not in KNOWN_PARTS]
    names += [f"num_beams: {settings.num_beams}"] if (settings.num_beams or 1) > 1 else []
    names += [name for name in OTHER_METHODS if getattr(settings, name, None)]
    return [
        f"{name}: recycling decoders do not support it; leave it out, or call "
        "transformers.GenerationMixin.generate(model, ...), which decodes without recycling"
        for name in names
    ]


def _decoder(model: RecycleGPTForCausalLM) -> Decoder:
    """A decoder made ready for these weights; made anew after one was changed, moved or converted.

    `weight.data += x` changes neither address nor version, so it is not seen: use `weight += x` in `torch.no_grad()`.
    """
    state = [(weight.data_ptr(), weight._version, weight.dtype) for weight in model.parameters()]
    made = model.__dict__.get("_ready")
    if made is None or made[0] != state:
        made = model.__dict__["_ready"] = (state, Decoder.optimised(model.core))
    decoder: Decoder = made[1]
    return decoder
