"""From a source to a model that is ready to run: fetch, check, load, test."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, GenerationConfig, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerBase

from phi3_serve.catalogue import is_local
from phi3_serve.engine.checkpoint import CONFIG, TOKENIZER, Checkpoint, open_checkpoint
from phi3_serve.engine.device import compute_capability, device_name
from phi3_serve.engine.load_errors import fetch_error, in_one_line, resource_error
from phi3_serve.engine.precision import dtype_to_load, has_bfloat16
from phi3_serve.errors import CheckpointError, DeviceMissing
from phi3_serve.observability.progress import download_bar, human_bytes, weights_progress
from phi3_serve.parameters import NAMES, GenerationParameters

logger = logging.getLogger("phi3_serve")

# No pickles and no code are downloaded, so none can run.
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja"]
SELF_TEST_TOKENS = 4


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, with its tokenizer and its generation config."""

    model: Any  # Phi3ForCausalLM; its generate() does not pass a type checker
    tokenizer: PreTrainedTokenizerBase
    defaults: GenerationParameters  # the checkpoint's generation config
    context_length: int  # tokens
    vocab_size: int


def load(name: str, source: str, revision: str | None, *, device: str, dtype: str) -> LoadedModel:
    """Load the checkpoint at ``source`` onto ``device`` (``cpu`` or ``cuda``).

    ``dtype`` is the name of a torch dtype, or ``auto``; see ``dtype_to_load``.

    Raises:
        CheckpointError: the checkpoint cannot be served. The message is one line that names the file.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing(f"{name}: device is cuda, but torch sees no GPU on this node")
    if dtype == "bfloat16":
        _require_bfloat16(name, torch.device(device))
    checkpoint = open_checkpoint(fetch(name, source, revision))
    config = _load_config(checkpoint)
    tokenizer = _load_tokenizer(checkpoint.directory, config)
    model = _load_weights(name, checkpoint, config, device=device, dtype=dtype)
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        defaults=_generation_defaults(name, model.generation_config, int(model.config.vocab_size)),
        context_length=int(model.config.max_position_embeddings),
        vocab_size=int(model.config.vocab_size),
    )
    self_test(loaded, checkpoint)
    logger.info("%s: ready on %s in %s", name, device, str(model.dtype).removeprefix("torch."))
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


def fetch(name: str, source: str, revision: str | None) -> Path:
    """The directory ``source``, or the Hub snapshot of ``revision``, which is downloaded if necessary.

    Raises:
        CheckpointError: the snapshot cannot be downloaded; the subclass is the cause.
    """
    if is_local(source):
        return Path(source).expanduser().resolve()
    logger.info("%s: fetching %s at %s", name, source, revision or "its newest revision")
    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=DOWNLOADED,
                tqdm_class=download_bar(f"{name}: downloading {source}"),
            )
        )
    except Exception as error:  # of the Hub, of the network or of the disk
        raise fetch_error(source, revision, error) from error


def _load_config(checkpoint: Checkpoint) -> Phi3Config:
    try:
        config: Phi3Config = Phi3Config.from_dict(dict(checkpoint.config))
    except Exception as error:  # the library raises any error of its validators
        raise CheckpointError(f"{checkpoint.directory / CONFIG}: {in_one_line(error)}") from error
    return config


def _load_tokenizer(directory: Path, config: Phi3Config) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, config=config, local_files_only=True
        )
    except Exception as error:  # the library raises any error of its parsers
        raise CheckpointError(f"{directory / TOKENIZER}: cannot be loaded: {in_one_line(error)}") from error
    return tokenizer


def _load_weights(name: str, checkpoint: Checkpoint, config: Phi3Config, *, device: str, dtype: str) -> Any:
    wanted = _dtype_to_load(name, checkpoint, device=device, dtype=dtype)
    logger.info("%s: loading %s of weights onto %s", name, human_bytes(checkpoint.total_bytes), device)
    try:
        with weights_progress(f"{name}: loading weights", checkpoint.tensor_bytes):
            loaded: Any = Phi3ForCausalLM.from_pretrained(
                checkpoint.directory,
                config=config,
                dtype=wanted,
                device_map={"": "cuda:0" if device == "cuda" else "cpu"},
                use_safetensors=True,
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # _check_tensors refuses them, with a better message
            )
    except Exception as error:  # the library raises any error of its parsers
        unreadable = CheckpointError(f"{checkpoint.directory}: weights cannot be loaded: {in_one_line(error)}")
        raise (resource_error(str(checkpoint.directory), error) or unreadable) from error
    model, info = loaded
    _check_tensors(name, checkpoint.directory, info)
    model.eval()
    return model


def _dtype_to_load(name: str, checkpoint: Checkpoint, *, device: str, dtype: str) -> str:
    """See ``dtype_to_load``. The log says it if the checkpoint's dtype is not taken."""
    stored = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    taken = dtype_to_load(dtype, stored=stored, capability=compute_capability(torch.device(device)))
    if device == "cuda" and dtype == "auto" and taken != "auto":
        logger.info("%s: %s instead of bfloat16, which %s does not have", name, taken, _chip(torch.device(device)))
    return taken


def _check_tensors(name: str, directory: Path, info: Mapping[str, Any]) -> None:
    """Refuse weights that config.json does not describe: transformers leaves them out, and draws what is missing."""
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{directory}: {len(missing)} tensor(s) that config.json requires are missing: {missing[0]}"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        tensor, stored, required = mismatched[0]
        raise CheckpointError(
            f"{directory}: {len(mismatched)} tensor(s) have another shape than config.json requires: "
            f"{tensor} has {list(stored)} instead of {list(required)}"
        )
    unexpected = sorted(info["unexpected_keys"])
    if of_decoder := [tensor for tensor in unexpected if tensor.startswith("model.")]:
        raise CheckpointError(
            f"{directory}: {len(of_decoder)} tensor(s) have no place in the model that config.json describes: "
            f"{of_decoder[0]}"
        )
    if unexpected:  # for example the value head of a reward model
        logger.warning("%s: %d tensor(s) are not used: %s", name, len(unexpected), unexpected[0])


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


@torch.inference_mode()
def self_test(loaded: LoadedModel, checkpoint: Checkpoint) -> None:
    """Generate a few tokens greedily.

    Raises:
        CheckpointError: a score is not a number.
    """
    prompt = torch.tensor([[loaded.tokenizer.convert_tokens_to_ids("<|user|>")]], device=loaded.model.device)
    output: Any = loaded.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        num_beams=1,
        max_new_tokens=SELF_TEST_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    if not all(bool(torch.isfinite(step).all()) for step in output.logits):
        raise CheckpointError(f"{checkpoint.directory}: the self-test gave nan or inf scores; the weights are damaged")
