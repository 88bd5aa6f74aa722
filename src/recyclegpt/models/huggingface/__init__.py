"""Checkpoints in Hugging Face layout and GGUF: Llama-family backbones in, and this project's models out."""

from recyclegpt.models.huggingface.families import read_config
from recyclegpt.models.huggingface.pretrained import PretrainedBackbone, load_backbone

__all__ = ["PretrainedBackbone", "load_backbone", "read_config"]
