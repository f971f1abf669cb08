"""From a source to a model that is ready to run: fetch, check, load."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, Phi3Config, PreTrainedTokenizerBase

from phi3_serve.catalogue import FP8, NO_QUANTIZATION
from phi3_serve.engine.adapters.merging import MergedAdapter, Merging
from phi3_serve.engine.checked_weights import check_weights
from phi3_serve.engine.checkpoint import CONFIG, GENERATION_CONFIG, TOKENIZER, Checkpoint
from phi3_serve.engine.freed_memory import return_freed_memory
from phi3_serve.engine.gguf.tokenizer import make_tokenizer
from phi3_serve.engine.kernels.half_panels import keeps_dtype
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype
from phi3_serve.engine.kernels.select import select_weight_kernels
from phi3_serve.engine.load_errors import in_one_line, resource_error
from phi3_serve.engine.load_precision import (
    Precision,
    WantedPrecision,
    choose_precision,
    dtype_of_model,
    require_possible,
)
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.quantization import Quantizer
from phi3_serve.engine.snapshot import fetch
from phi3_serve.engine.source import open_source
from phi3_serve.engine.weights import Phi3Weights
from phi3_serve.errors import CheckpointError
from phi3_serve.observability.progress import Progress, human_bytes
from phi3_serve.parameters import NAMES, GenerationParameters

logger = logging.getLogger("phi3_serve")


def load(
    name: str,
    source: str,
    revision: str | None,
    *,
    device: str,
    dtype: str,
    quantization: str = NO_QUANTIZATION,
    kv_cache_dtype: KvCacheDtype = "auto",
    gpu_share: float = 1.0,
    file: str | None = None,
    merged_adapters: Sequence[tuple[str, str, float]] = (),
) -> LoadedModel:
    """Load the checkpoint at ``source`` onto ``device`` (``cpu`` or ``cuda``).

    Args:
        name: of the model, for messages.
        source: Hub repository id, directory, or GGUF file.
        revision: of the repository.
        device: ``cpu`` or ``cuda``.
        dtype: the name of a torch dtype, or ``auto``; see ``dtype_to_load``.
        quantization: ``none``, ``int8``, ``int4``, ``fp8``, or ``auto``; see ``quantization_to_load``.
        kv_cache_dtype: that the engine will have; ``auto``: the dtype that the model computes in.
        gpu_share: of the memory of a GPU that the model may take, for ``auto``; see ``FittingSizes``.
        file: the GGUF file of ``source``, if it has several.
        merged_adapters: name, directory and strength of each adapter that is applied always. Their changes are added to
            the weights in float32 before these are rounded.

    Raises:
        CheckpointError: the checkpoint cannot be served, or an adapter cannot be merged into it. The message is one
            line that names the file.
    """
    wanted = WantedPrecision(
        device=device,
        dtype=dtype,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        gpu_share=gpu_share,
        merges_adapters=bool(merged_adapters),
    )
    require_possible(name, wanted)
    checkpoint = open_source(fetch(name, source, revision, file), file)
    config = load_config(checkpoint)
    tokenizer = _load_tokenizer(checkpoint, config)
    precision = choose_precision(name, checkpoint, config, wanted)
    logger.info("%s: loading %s of weights onto %s", name, human_bytes(checkpoint.total_bytes), device)
    generation_config = _load_generation_config(checkpoint, config)
    adapters = [MergedAdapter(*adapter) for adapter in merged_adapters]
    model = _load_weights(name, checkpoint, config, precision, device, adapters)
    _log_precision(name, checkpoint, model, precision, device)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        defaults=_generation_defaults(name, generation_config, config.vocab_size),
        context_length=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        quantization=precision.quantization,
        weight_format=checkpoint.weight_format,
    )


def load_config(checkpoint: Checkpoint) -> Phi3Config:
    """What ``checkpoint`` says about the model.

    Raises:
        CheckpointError: transformers refuses a field.
    """
    try:
        config: Phi3Config = Phi3Config.from_dict(dict(checkpoint.config))
    except Exception as error:  # the library raises any error of its validators
        file = checkpoint.path if checkpoint.gguf is not None else checkpoint.path / CONFIG
        raise CheckpointError(f"{file}: {in_one_line(error)}") from error
    return config


def _load_tokenizer(checkpoint: Checkpoint, config: Phi3Config) -> PreTrainedTokenizerBase:
    if checkpoint.gguf is not None:
        return make_tokenizer(checkpoint.gguf, checkpoint.path, vocab_size=config.vocab_size)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.path, config=config, local_files_only=True
        )
    except Exception as error:  # the library raises any error of its parsers
        raise CheckpointError(f"{checkpoint.path / TOKENIZER}: cannot be loaded: {in_one_line(error)}") from error
    return tokenizer


def _load_weights(
    name: str,
    checkpoint: Checkpoint,
    config: Phi3Config,
    precision: Precision,
    device: str,
    adapters: Sequence[MergedAdapter],
) -> Phi3Weights:
    try:
        return _read_weights(name, checkpoint, config, precision, device, adapters)
    except CheckpointError:
        raise
    except Exception as error:  # the libraries raise any error of their parsers
        unreadable = CheckpointError(f"{checkpoint.path}: weights cannot be loaded: {in_one_line(error)}")
        raise (resource_error(str(checkpoint.path), error) or unreadable) from error


def _read_weights(
    name: str,
    checkpoint: Checkpoint,
    config: Phi3Config,
    precision: Precision,
    device: str,
    adapters: Sequence[MergedAdapter],
) -> Phi3Weights:
    """The weights, which are converted, rounded or unpacked one after another while they are read.

    At no time they are held as they were stored.
    """
    dtype, quantization = dtype_of_model(checkpoint, precision.dtype), precision.quantization
    weights = check_weights(name, checkpoint, config, getattr(torch, dtype))
    model = weights.model
    merging = Merging(name, adapters, config, model.dtype, is_quantized=checkpoint.quantization is not None)
    if quantization == NO_QUANTIZATION:
        take = _taken_as_it_is(model, device)
    else:
        on = torch.device(device)
        # What a quantised checkpoint leaves in floats is sensitive.
        of_floats = quantization if checkpoint.quantization is None else "int8"
        kernels = select_weight_kernels(on)
        take = Quantizer(model, quantization, kernels, model.dtype, on, of_floats=of_floats).take
    progress = Progress(f"{name}: loading weights", checkpoint.total_bytes)
    for parameter in weights.parameters:
        take(parameter, merging.merged(parameter, weights.stored.read(parameter)))
        return_freed_memory()
        progress.advance(weights.stored.num_bytes(parameter))
    progress.finish()
    return model


def _taken_as_it_is(model: Phi3Weights, device: str) -> Callable[[str, Any], None]:
    """Sets a parameter of ``model`` to a weight, in the dtype of the model or, see ``keeps_dtype``, in its own."""

    def take(name: str, weight: Tensor) -> None:
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        is_matrix = isinstance(module, nn.Linear | nn.Embedding)
        is_kept = is_matrix and device == "cpu" and keeps_dtype(weight.dtype, model.dtype)
        # A copy: the stored weight is a view of the file, which may change.
        copied = weight.to(device, weight.dtype if is_kept else model.dtype, copy=True)
        of_model = nn.Parameter(copied, requires_grad=False)
        setattr(module, parameter, of_model)
        if isinstance(module, nn.Embedding) and model.config.tie_word_embeddings:
            model.lm_head.weight = of_model

    return take


def _log_precision(name: str, checkpoint: Checkpoint, model: Phi3Weights, precision: Precision, device: str) -> None:
    computed = str(model.dtype).removeprefix("torch.")
    weights = precision.quantization
    if weights == NO_QUANTIZATION:
        weights = str(model.lm_head.weight.dtype).removeprefix("torch.")
    stored = "" if weights == computed else f", weights in {weights}"
    stored += ", which activations are rounded to" if weights == FP8 else ""
    logger.info("%s: %s, ready on %s in %s%s", name, checkpoint.weight_format, device, computed, stored)


def _load_generation_config(checkpoint: Checkpoint, config: Phi3Config) -> GenerationConfig:
    file = checkpoint.path if checkpoint.gguf is not None else checkpoint.path / GENERATION_CONFIG
    try:
        if checkpoint.generation_config is not None:
            return GenerationConfig(**checkpoint.generation_config)
        if file.exists():
            return GenerationConfig.from_pretrained(checkpoint.path)
        return GenerationConfig.from_model_config(config)
    except Exception as error:  # the library raises any error of its validators
        raise CheckpointError(f"{file}: {in_one_line(error)}") from error


def _generation_defaults(name: str, config: GenerationConfig, vocab_size: int) -> GenerationParameters:
    """The checkpoint's generation config, without token ids that the vocabulary does not have.

    transformers keeps such ids, although the model can never generate them.
    """
    defaults = GenerationParameters(**{n: v for n in NAMES if (v := getattr(config, n, None)) is not None})
    for token in ("bos_token_id", "pad_token_id"):
        if not 0 <= (getattr(defaults, token) or 0) < vocab_size:
            defaults = replace(defaults, **{token: None})
    ends = [i for i in defaults.eos_token_ids() if 0 <= i < vocab_size]
    if not ends:
        logger.warning("%s: the generation config has no end-of-sequence token; answers end only by their length", name)
    return replace(defaults, eos_token_id=ends or None)
