"""The two shapes a model is built from. Both are plain numbers, frozen, and check themselves."""

# No `from __future__ import annotations`: Hydra and the hub mixin read the types of the fields.

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recyclegpt.errors import ConfigError
from recyclegpt.models.rope import RopeScaling

MAX_RECYCLED = 8
"""Most tokens recycled per backbone pass. Twice as many positions exist beyond the context, for rejected drafts."""

if TYPE_CHECKING:
    Derived = int
else:
    Derived = int | None
"""A number that may be given as None; the finished config always holds the number derived from the others."""
DERIVE: Any = None
KINDS = sorted(file.stem for file in (Path(__file__).parent / "drafts").glob("[!_]*.py"))
"""Draft modules, one file each."""
DERIVED = ("num_kv_heads", "head_dim", "intermediate_size")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the LLaMA-style backbone. The layers of the recyclable module have the same widths (`plain`).

    Raises:
        ConfigError: naming every field that cannot work.
    """

    vocab_size: int
    context_length: int = 256
    num_layers: int = 8
    hidden_size: int = 256
    num_heads: int = 4
    num_kv_heads: Derived = DERIVE
    """Key/value heads of grouped-query attention; None: equal to `num_heads`."""
    head_dim: Derived = DERIVE
    """Width of one head; None: `hidden_size / num_heads`."""
    intermediate_size: Derived = DERIVE
    """Width of the SwiGLU layer; None: 8/3 of `hidden_size`, rounded up to a multiple of 64."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    init_std: float = 0.02
    qkv_bias: bool = False
    """Biases of queries, keys and values, as in Qwen2."""
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head's query and key before they are rotated, as in Qwen3."""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)

    def __post_init__(self) -> None:
        if not isinstance(self.rope_scaling, RopeScaling):  # plain values of a file
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        positive = ("vocab_size", "context_length", "num_layers", "hidden_size", "num_heads", "rope_theta", "norm_eps")
        problems = [
            f"{name}: {value} is not positive"
            for name in (*positive, *DERIVED)
            if (value := getattr(self, name)) is not None and not value > 0
        ]
        if not self.init_std >= 0:
            problems.append(f"init_std: {self.init_std} is negative")
        if problems:
            raise ConfigError(problems)
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.intermediate_size is None:
            object.__setattr__(self, "intermediate_size", -(-8 * self.hidden_size // (3 * 64)) * 64)
        if self.num_heads % self.num_kv_heads:
            problems.append(f"num_kv_heads: {self.num_kv_heads} does not divide num_heads={self.num_heads}")
        if self.head_dim is None:
            if self.hidden_size % self.num_heads:
                problems.append(
                    f"num_heads: {self.num_heads} does not divide hidden_size={self.hidden_size}; change one, or set "
                    "head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        problems += [
            f"{name}: {getattr(self, name)} is odd; rotary position embedding and the CPU kernels need even widths"
            for name in ("hidden_size", "head_dim", "intermediate_size")
            if getattr(self, name) % 2
        ]
        if problems:
            raise ConfigError(problems)

    @property
    def plain(self) -> "ModelConfig":
        """The same shape with plain LLaMA layers, which the recyclable module has on every backbone.

        These are the layers that serving engines support for draft models (`docs/serving.md`).
        """
        return replace(self, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False)


@dataclass(frozen=True)
class RecycleConfig:
    """Shape of the draft module. `num_layers` is the recycle depth d (the paper's is 6); 0 means no module.

    The recyclable module is the default `kind`; the others are its neighbours (`docs/drafters.md`). As it is, it is
    tensor for tensor what vLLM loads as `EagleMistralForCausalLM`; `final_norm=False` and
    `first_input_norm=False` together are the EAGLE-1 module (github.com/SafeAILab/EAGLE, `cnets1.py`);
    `norm_inputs` puts an RMSNorm on both inputs of the fold, as DeepSeek-V3's multi-token prediction does.

    Raises:
        ConfigError: naming every field that cannot work.
    """

    num_layers: int = 2
    norm_inputs: bool = False
    final_norm: bool = True
    first_input_norm: bool = True
    draft_vocab: int | None = None
    """Token ids D that the module may propose (`DraftModule.draft_ids`): its LM head is that many rows of the
    backbone's (FR-Spec, github.com/thunlp/FR-Spec). None: the whole vocabulary."""
    kind: str = "recyclable"
    num_drafted: int | None = None
    """Tokens that a one-call kind drafts at most, and steps that its training has; None for the others."""
    markov_rank: int = 0
    """Of `mask_rows`: rank of the head that knows the token before; 0: none."""
    from_layer: int | None = None
    """Of `hidden_transfer`: the backbone layer whose input is transferred; None: half of the way up."""
    num_segments: int = 2
    """Of `segments`: cursors in a block."""

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in KINDS:
            problems.append(f"kind: {self.kind!r} is unknown; choose from {', '.join(KINDS)}")
        if self.num_drafted is not None and not 1 <= self.num_drafted <= MAX_RECYCLED:
            problems.append(f"num_drafted: {self.num_drafted} is not between 1 and {MAX_RECYCLED}")
        if self.markov_rank < 0:
            problems.append(f"markov_rank: {self.markov_rank} is negative; 0 means no Markov head")
        if self.num_segments < 1:
            problems.append(f"num_segments: {self.num_segments} is not positive")
        if self.num_layers < 0:
            problems.append(f"num_layers: {self.num_layers} is negative; 0 means no recyclable module")
        if self.draft_vocab is not None and self.draft_vocab < 2:
            problems.append(
                f"draft_vocab: {self.draft_vocab} leaves nothing to choose from; null is the whole vocabulary"
            )
        if problems:
            raise ConfigError(problems)
