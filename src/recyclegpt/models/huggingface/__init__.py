"""Checkpoints in Hugging Face layout: Llama-family backbones in, and this project's models out."""

from recyclegpt.models.huggingface.families import FAMILIES, read_config
from recyclegpt.models.huggingface.pretrained import PretrainedBackbone, load_backbone

__all__ = ["FAMILIES", "PretrainedBackbone", "load_backbone", "read_config"]
