"""What the network is: pure torch."""

from recyclegpt.hardware.device import fastest_dtype, has_native_bf16, named_dtype
from recyclegpt.models.config import MAX_RECYCLED, ModelConfig, RecycleConfig
from recyclegpt.models.kv_cache import KVCache
from recyclegpt.models.recyclegpt import RecycleGPT, States
from recyclegpt.models.rope import RopeScaling

__all__ = [
    "MAX_RECYCLED",
    "KVCache",
    "ModelConfig",
    "RecycleConfig",
    "RecycleGPT",
    "RopeScaling",
    "States",
    "fastest_dtype",
    "has_native_bf16",
    "named_dtype",
]
