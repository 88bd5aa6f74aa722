"""Language models that decode faster by recycling states they have already computed (RecycleGPT, arXiv 2308.03421)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from recyclegpt.decoding import generate
    from recyclegpt.models import ModelConfig, RecycleConfig, RecycleGPT

__all__ = ["ModelConfig", "RecycleConfig", "RecycleGPT", "generate"]


def __getattr__(name: str) -> Any:
    # Late, so that `recyclegpt --help` answers without importing torch.
    if name in __all__:
        import importlib

        return getattr(
            importlib.import_module("recyclegpt.decoding" if name == "generate" else "recyclegpt.models"), name
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
