"""From a source to a model that is ready to run: fetch, check, load."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, Phi3Config, PreTrainedTokenizerBase

from phi3_serve.catalogue import DOWNLOADED, EXACT_QUANTIZATIONS, FP8, NO_QUANTIZATION, is_local, memory_needed
from phi3_serve.engine.adapters import reader
from phi3_serve.engine.adapters.merging import MergedAdapter, Merging
from phi3_serve.engine.checked_weights import check_weights
from phi3_serve.engine.checkpoint import CONFIG, GENERATION_CONFIG, TOKENIZER, Checkpoint
from phi3_serve.engine.device import compute_capability, device_name, free_gpu_bytes
from phi3_serve.engine.freed_memory import return_freed_memory
from phi3_serve.engine.gguf.tokenizer import make_tokenizer
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype, bytes_of_head
from phi3_serve.engine.kernels.select import select_weight_kernels
from phi3_serve.engine.load_errors import fetch_error, in_one_line, resource_error
from phi3_serve.engine.precision import (
    dtype_to_load,
    has_bfloat16,
    problem_of_kv_cache_dtype,
    problem_of_quantization,
    quantization_to_load,
)
from phi3_serve.engine.quantization import Quantizer
from phi3_serve.engine.source import open_source
from phi3_serve.engine.stored_quantization import StoredQuantization
from phi3_serve.engine.weights import Phi3Weights, head_dim
from phi3_serve.errors import CheckpointError, CheckpointIncomplete, DeviceMissing
from phi3_serve.observability.progress import Progress, download_bar, human_bytes
from phi3_serve.parameters import NAMES, GenerationParameters

logger = logging.getLogger("phi3_serve")


DTYPE_OF_PHI3 = "bfloat16"  # if config.json names none


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
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing(f"{name}: device is cuda, but torch sees no GPU on this node")
    if dtype == "bfloat16":
        _require_bfloat16(name, torch.device(device))
    capability = compute_capability(torch.device(device))
    for problem in (
        problem_of_kv_cache_dtype(kv_cache_dtype, capability),
        problem_of_quantization(quantization, capability),
    ):
        if problem is not None:
            raise CheckpointError(f"{name}: {problem}")
    checkpoint = open_source(fetch(name, source, revision, file), file)
    if checkpoint.quantization is not None:
        quantization = _stored_quantization(name, checkpoint.quantization, quantization)
        if problem := problem_of_quantization(quantization, capability, is_stored=True):
            raise CheckpointError(f"{name}: {problem}")
    config = load_config(checkpoint)
    tokenizer = _load_tokenizer(checkpoint, config)
    dtype = _dtype_to_load(name, checkpoint, device=device, dtype=dtype)
    if quantization == FP8 and _dtype_of_model(checkpoint, dtype) == "float32":
        raise CheckpointError(f"{name}: quantization is fp8, but dtype is float32; allowed are bfloat16 and float16")
    quantization = _quantization_to_load(
        name,
        checkpoint,
        config,
        quantization,
        device=device,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        gpu_share=gpu_share,
    )
    logger.info("%s: loading %s of weights onto %s", name, human_bytes(checkpoint.total_bytes), device)
    generation_config = _load_generation_config(checkpoint, config)
    try:
        model = _load_weights(
            name,
            checkpoint,
            config,
            device=device,
            dtype=dtype,
            quantization=quantization,
            adapters=[MergedAdapter(*adapter) for adapter in merged_adapters],
        )
    except CheckpointError:
        raise
    except Exception as error:  # the libraries raise any error of their parsers
        unreadable = CheckpointError(f"{checkpoint.path}: weights cannot be loaded: {in_one_line(error)}")
        raise (resource_error(str(checkpoint.path), error) or unreadable) from error
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        defaults=_generation_defaults(name, generation_config, config.vocab_size),
        context_length=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        quantization=quantization,
        weight_format=checkpoint.weight_format,
    )
    rounded = "" if quantization == NO_QUANTIZATION else f", weights in {quantization}"
    rounded += ", which activations are rounded to" if quantization == FP8 else ""
    computed_in = str(model.dtype).removeprefix("torch.")
    logger.info("%s: %s, ready on %s in %s%s", name, checkpoint.weight_format, device, computed_in, rounded)
    return loaded


def _require_bfloat16(name: str, device: torch.device) -> None:
    """Refuse a GPU that would emulate bfloat16, for which there are no kernels. A CPU computes it in float32."""
    capability = compute_capability(device)
    if capability is not None and not has_bfloat16(capability):
        raise CheckpointError(
            f"{name}: dtype is bfloat16, but {_chip(device)} has no bfloat16; allowed are float16, float32 and auto"
        )


def _chip(device: torch.device) -> str:
    major, minor = compute_capability(device) or (0, 0)
    return f"{device_name(device)} (compute capability {major}.{minor})"


def fetch(name: str, source: str, revision: str | None, file: str | None = None) -> Path:
    """The directory or file ``source``, or the Hub snapshot of ``revision``, which is downloaded if necessary.

    With ``file``, nothing else of the snapshot is downloaded.

    Raises:
        CheckpointError: the snapshot cannot be downloaded; the subclass is the cause.
    """
    if is_local(source):
        return Path(source).expanduser().resolve()
    snapshot = _snapshot(name, source, revision, DOWNLOADED if file is None else [file])
    if file is not None and not (snapshot / file).exists():
        raise CheckpointIncomplete(f"{source}: there is no file {file} at {revision or 'its newest revision'}")
    if file is None and not any(snapshot.glob("*.safetensors")):
        raise CheckpointIncomplete(
            f"{source}: there are no safetensors files; of a repository with GGUF files, `file` must name one"
        )
    return snapshot


def fetch_adapter(name: str, source: str, revision: str | None) -> Path:
    """The directory ``source``, or the Hub snapshot of ``revision``, of which only an adapter's files are downloaded.

    Raises:
        CheckpointError: the snapshot cannot be downloaded; the subclass is the cause.
    """
    if is_local(source):
        return Path(source).expanduser().resolve()
    # Patterns like *.json would also take the checkpoints of the training, which are in directories below.
    snapshot = _snapshot(name, source, revision, reader.FILES)
    for file in reader.FILES:
        if not (snapshot / file).exists():
            raise CheckpointIncomplete(
                f"{source}: there is no file {file} at {revision or 'its newest revision'}; an adapter is "
                f"{' and '.join(reader.FILES)}. A pickle such as {reader.PICKLED} may run any code and is not read"
            )
    return snapshot


def _snapshot(name: str, source: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The Hub snapshot of ``revision``, of which the files that ``patterns`` match are downloaded."""
    logger.info("%s: fetching %s at %s", name, source, revision or "its newest revision")
    bar = download_bar(f"{name}: downloading {source}")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns), tqdm_class=bar))
    except Exception as error:  # of the Hub, of the network or of the disk
        raise fetch_error(source, revision, error) from error


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
    *,
    device: str,
    dtype: str,
    quantization: str,
    adapters: Sequence[MergedAdapter],
) -> Phi3Weights:
    """The weights, which are converted, rounded or unpacked one after another while they are read.

    At no time they are held as they were stored.
    """
    weights = check_weights(name, checkpoint, config, getattr(torch, _dtype_of_model(checkpoint, dtype)))
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
    """Sets a parameter of ``model`` to a weight."""

    def take(name: str, weight: Tensor) -> None:
        path, _, parameter = name.rpartition(".")
        # A copy: the stored weight is a view of the file, which may change.
        of_model = nn.Parameter(weight.to(device, model.dtype, copy=True), requires_grad=False)
        setattr(model.get_submodule(path), parameter, of_model)
        if isinstance(model.get_submodule(path), nn.Embedding) and model.config.tie_word_embeddings:
            model.lm_head.weight = of_model

    return take


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


def _dtype_to_load(name: str, checkpoint: Checkpoint, *, device: str, dtype: str) -> str:
    """See ``dtype_to_load``. The log says it if the checkpoint's dtype is not taken."""
    taken = dtype_to_load(dtype, stored=_stored_dtype(checkpoint), capability=compute_capability(torch.device(device)))
    if device == "cuda" and dtype == "auto" and taken != "auto":
        logger.info("%s: %s instead of bfloat16, which %s does not have", name, taken, _chip(torch.device(device)))
    return taken


def _stored_dtype(checkpoint: Checkpoint) -> str | None:
    """The dtype that config.json names; transformers 4 called it otherwise."""
    return checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")


def _dtype_of_model(checkpoint: Checkpoint, taken: str) -> str:
    return _stored_dtype(checkpoint) or DTYPE_OF_PHI3 if taken == "auto" else taken


def _quantization_to_load(
    name: str,
    checkpoint: Checkpoint,
    config: Phi3Config,
    wanted: str,
    *,
    device: str,
    dtype: str,
    kv_cache_dtype: KvCacheDtype,
    gpu_share: float,
) -> str:
    """See ``quantization_to_load``. The log says it if ``auto`` rounds the weights."""
    if wanted != "auto":
        return wanted
    available = free_gpu_bytes(gpu_share) if device == "cuda" else psutil.virtual_memory().available
    of_model = _dtype_of_model(checkpoint, dtype)
    kv_heads = 2 * config.num_hidden_layers * (config.num_key_value_heads or 0)
    kv_bytes_per_token = kv_heads * bytes_of_head(head_dim(config), getattr(torch, of_model), kv_cache_dtype)
    needed = {
        quantization: memory_needed(
            checkpoint.num_parameters,
            kv_bytes_per_token=kv_bytes_per_token,
            context_length=config.max_position_embeddings,
            dtype=of_model,
            quantization=quantization,
        )
        for quantization in EXACT_QUANTIZATIONS
    }
    taken = quantization_to_load(wanted, needed=needed, available=available)
    if taken != NO_QUANTIZATION:
        logger.info(
            "%s: weights in %s, because %s of memory are available and the model in %s needs %s",
            name,
            taken,
            human_bytes(available),
            of_model,
            human_bytes(needed[NO_QUANTIZATION]),
        )
    return taken


def _stored_quantization(name: str, of_checkpoint: StoredQuantization, wanted: str) -> str:
    """That of a checkpoint whose weights are quantised already."""
    stored = of_checkpoint.quantization
    if wanted not in (NO_QUANTIZATION, "auto", stored):
        bits = FP8 if stored == FP8 else f"{of_checkpoint.bits} bits"
        raise CheckpointError(
            f"{name}: quantization is {wanted}, but the checkpoint has weights in {bits}; allowed are {stored} and auto"
        )
    return stored


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
