"""A model that is ready to run."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from phi3_serve.catalogue import NO_QUANTIZATION
from phi3_serve.parameters import GenerationParameters


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, with its tokenizer and its generation config."""

    model: Any  # Phi3Weights, or Phi3ForCausalLM, whose modules have the same names
    tokenizer: PreTrainedTokenizerBase
    defaults: GenerationParameters  # the checkpoint's generation config
    context_length: int  # tokens
    vocab_size: int
    quantization: str = NO_QUANTIZATION
    weight_format: str = ""  # how the checkpoint stores the weights, in words
