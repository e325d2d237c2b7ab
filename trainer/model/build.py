"""Make the float model of a config, whatever its family."""

import torch

from codec.model.config import AnyConfig
from codec.model.transformer import TransformerConfig
from trainer.model.gpt import GPT
from trainer.model.transformer import Transformer

FloatModel = GPT | Transformer


def float_network(config: AnyConfig, dtype: torch.dtype = torch.float32) -> FloatModel:
    """Make a model with new weights; `dtype` as for `GPT`."""
    return Transformer(config, dtype=dtype) if isinstance(config, TransformerConfig) else GPT(config, dtype=dtype)
