"""Loading of a replica's model: weights, tokenizer and the engine over them."""

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from phi3_serve.config.adapter import AdapterConfig
from phi3_serve.core.engine_info import EngineInfo
from phi3_serve.core.engine_protocol import Engine
from phi3_serve.errors import CheckpointError
from phi3_serve.observability.progress import told_to
from phi3_serve.serving.replica_options import ReplicaOptions

if TYPE_CHECKING:
    from phi3_serve.engine.loaded_model import LoadedModel
    from phi3_serve.text.constraint import Grammars
    from phi3_serve.text.tokenizer import Phi3Tokenizer


logger = logging.getLogger("phi3_serve")


@dataclass(frozen=True, slots=True)
class RunningModel:
    """A loaded model with its tokenizer and its running engine."""

    loaded: "LoadedModel"
    tokenizer: "Phi3Tokenizer"
    engine: Engine
    grammars: "Grammars"
    load_s: float  # seconds that its load took


def load_model(
    options: ReplicaOptions, on_fatal_error: Callable[[Exception], None], on_progress: Callable[[str], None]
) -> RunningModel:
    """Load the model and start its engine. ``on_progress`` gets lines of progress meanwhile.

    ``on_fatal_error`` is called on the engine's thread when the engine cannot go on.

    Raises:
        CheckpointError: the checkpoint cannot be served; the subclass is the cause.
        Exception: any other failure, of the engine or of a library.
    """
    from phi3_serve.engine.load_errors import resource_error

    try:
        with told_to(on_progress):
            running = _load(options, on_fatal_error)
        logger.info("%s: %s", options.name, _described(running.engine.info))
        return running
    except CheckpointError:
        raise
    except Exception as error:
        if of_resource := resource_error(options.name, error):
            raise of_resource from error
        raise


def release_memory() -> None:
    """Give back what a failed load has left in the memory of the process and of the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _described(info: EngineInfo) -> str:
    """One line for the log."""
    chip = f" (compute capability {info.compute_capability})" if info.compute_capability else ""
    replaced = f", replaced by slower ones: {', '.join(info.replaced_kernels)}" if info.replaced_kernels else ""
    return (
        f"{info.device}{chip}, {info.dtype}, quantization {info.quantization}, kernels {info.kernels}{replaced}, "
        f"key-value cache of {info.cache_tokens} tokens in {info.kv_cache_dtype}"
    )


def _fetched(model: str, adapter: AdapterConfig) -> tuple[str, str, float]:
    """Name, directory and strength of an adapter of ``model``. A Hub repository is downloaded."""
    from phi3_serve.engine.snapshot import fetch_adapter

    directory = fetch_adapter(f"{model}:{adapter.name}", adapter.source, adapter.revision)
    return adapter.name, str(directory), adapter.strength


def _load(options: ReplicaOptions, on_fatal_error: Callable[[Exception], None]) -> RunningModel:
    # Imported here: the process that builds the application imports this module and needs no torch.
    import torch
    import transformers

    from phi3_serve.engine.engine import Engine as BatchingEngine
    from phi3_serve.engine.loader import load
    from phi3_serve.engine.memory import FittingSizes
    from phi3_serve.engine.model.select import new_runner
    from phi3_serve.engine.threads import in_temporary_thread
    from phi3_serve.text.constraint import Grammars
    from phi3_serve.text.tokenizer import Phi3Tokenizer

    def start() -> RunningModel:
        begun = time.monotonic()
        loaded = load(
            options.name,
            options.source,
            options.revision,
            device=options.device,
            dtype=options.dtype,
            quantization=options.quantization,
            kv_cache_dtype=options.kv_cache_dtype,
            gpu_share=options.gpu_share,
            file=options.file,
            merged_adapters=[_fetched(options.name, adapter) for adapter in options.merged_adapters],
        )
        # Before the engine: its thread and its cache would stay when the chat template cannot be used.
        tokenizer = Phi3Tokenizer(loaded.tokenizer)
        logger.info("%s: conversations are written with %s", options.name, tokenizer.template.origin)
        engine = BatchingEngine(
            loaded,
            sizes=FittingSizes(
                kv_cache_dtype=options.kv_cache_dtype,
                adapter_bytes=options.gpu_adapter_memory_bytes,
                gpu_share=options.gpu_share,
            ),
            stuck_after_s=options.stuck_after_s,
            on_breakdown=on_fatal_error,
            releases_weights=True,
            make_runner=partial(new_runner, cuda_graphs=options.cuda_graphs, flash_attention=options.flash_attention),
        )
        grammars = Grammars(tokenizer, loaded.vocab_size)
        return RunningModel(loaded, tokenizer, engine, grammars, time.monotonic() - begun)

    torch.set_num_threads(options.num_threads)
    # At every request transformers would warn of parameters without effect. Ours are checked, and KAITO's defaults
    # have such parameters.
    transformers.logging.set_verbosity_error()
    return in_temporary_thread(start)
