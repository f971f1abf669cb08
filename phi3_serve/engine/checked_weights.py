"""The stored weights that a model is made from. All of them are there, and none is left over."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Phi3Config

from phi3_serve.engine.checkpoint import Checkpoint
from phi3_serve.engine.stored_weights import StoredWeights
from phi3_serve.engine.weights import Phi3Weights
from phi3_serve.errors import CheckpointError

logger = logging.getLogger("phi3_serve")

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
STORED_BY_TRANSFORMERS_4 = "rotary_emb.inv_freq"  # computed now


@dataclass(frozen=True, slots=True)
class CheckedWeights:
    """A model without values, and what the checkpoint stores for it."""

    model: Phi3Weights
    parameters: Mapping[str, list[int]]  # their shapes, by name; tied ones once
    stored: StoredWeights


def check_weights(name: str, checkpoint: Checkpoint, config: Phi3Config, dtype: torch.dtype) -> CheckedWeights:
    """Compare the tensors of ``checkpoint`` with the parameters that ``config`` describes.

    ``config.tie_word_embeddings`` is set to what the tensors say. ``dtype`` is that of weights that are not quantised.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or has no place in the model ``name``.
    """
    config.tie_word_embeddings = _is_tied(checkpoint, config)
    model = Phi3Weights(config, dtype)
    parameters = {parameter: list(tensor.shape) for parameter, tensor in model.named_parameters()}
    weights = CheckedWeights(model, parameters, StoredWeights(checkpoint, parameters, _substitutes(checkpoint, config)))
    _check_tensors(name, str(checkpoint.path), weights)
    return weights


def _is_tied(checkpoint: Checkpoint, config: Phi3Config) -> bool:
    """Whether the head is the embedding. As in transformers, a head that is stored and differs is not."""
    if not config.tie_word_embeddings or not checkpoint.tensors.keys() >= {EMBEDDING, HEAD}:
        return config.tie_word_embeddings
    stored = StoredWeights(checkpoint, {})
    embedding, head = stored.read(EMBEDDING), stored.read(HEAD)
    return isinstance(embedding, Tensor) and isinstance(head, Tensor) and torch.equal(embedding, head)


def _substitutes(checkpoint: Checkpoint, config: Phi3Config) -> Mapping[str, str]:
    """The head for an embedding that is not stored, as safetensors stores the first of two tied weights by its name."""
    is_substitute = config.tie_word_embeddings and EMBEDDING not in checkpoint.tensors and HEAD in checkpoint.tensors
    return {EMBEDDING: HEAD} if is_substitute else {}


def _check_tensors(name: str, where: str, weights: CheckedWeights) -> None:
    """Refuse weights that config.json does not describe: transformers leaves them out, and draws what is missing."""
    required, stored = weights.parameters, weights.stored.shapes()
    if missing := sorted(required.keys() - stored.keys()):
        raise CheckpointError(f"{where}: {len(missing)} tensor(s) that config.json requires are missing: {missing[0]}")
    if mismatched := sorted(parameter for parameter, shape in required.items() if stored[parameter] != shape):
        first = mismatched[0]
        raise CheckpointError(
            f"{where}: {len(mismatched)} tensor(s) have another shape than config.json requires: "
            f"{first} has {stored[first]} instead of {required[first]}"
        )
    known = {parameter for parameter, _ in weights.model.named_parameters(remove_duplicate=False)}  # tied ones included
    unexpected = sorted(tensor for tensor in stored.keys() - known if not tensor.endswith(STORED_BY_TRANSFORMERS_4))
    if of_decoder := [tensor for tensor in unexpected if tensor.startswith("model.")]:
        raise CheckpointError(
            f"{where}: {len(of_decoder)} tensor(s) have no place in the model that config.json describes: "
            f"{of_decoder[0]}"
        )
    if unexpected:  # for example the value head of a reward model
        logger.warning("%s: %d tensor(s) are not used: %s", name, len(unexpected), unexpected[0])
