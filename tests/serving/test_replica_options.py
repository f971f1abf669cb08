"""The options of a replica are what the config says, resolved."""

import pickle

import pytest

from phi3_serve.catalogue import VARIANTS
from phi3_serve.config.limits import LimitsConfig
from phi3_serve.config.model import ModelConfig
from phi3_serve.errors import CheckpointError
from phi3_serve.parameters import GenerationParameters
from phi3_serve.serving.model_loading import load_model
from phi3_serve.serving.placement import Placement
from phi3_serve.serving.replica_options import ReplicaOptions

LIMITS = LimitsConfig(max_waiting_requests=3)
MINI = ModelConfig(name="phi-3-mini-4k-instruct")


def test_a_catalogue_name_has_its_pinned_source() -> None:
    variant = next(v for v in VARIANTS if v.name == "phi-3-mini-4k-instruct")
    options = ReplicaOptions.from_config(
        ModelConfig(name="microsoft/Phi-3-mini-4k-instruct"), Placement("cuda", 2, 1, None), LIMITS
    )
    assert (options.name, options.source, options.revision) == (variant.name, variant.source, variant.revision)
    assert (options.device, options.num_threads, options.limits) == ("cuda", 2, LIMITS.of_queue)


def test_what_the_config_says_of_a_model() -> None:
    model = ModelConfig.model_validate(
        {
            "name": "mine",
            "source": "/models/mine",
            "file": "q4.gguf",
            "dtype": "bfloat16",
            "quantization": "int4",
            "kv_cache_dtype": "int8",
            "cuda_graphs": False,
            "flash_attention": False,
            "health": {"stuck_after_s": 7},
            "defaults": {"top_k": 5},
        }
    )
    options = ReplicaOptions.from_config(model, Placement("cpu", 0.25, 0, None), LIMITS)
    assert options == ReplicaOptions(
        name="mine",
        source="/models/mine",
        revision=None,
        file="q4.gguf",
        device="cpu",
        dtype="bfloat16",
        quantization="int4",
        kv_cache_dtype="int8",
        cuda_graphs=False,
        flash_attention=False,
        num_threads=1,  # a part of a core is still one thread
        stuck_after_s=7,
        limits=LIMITS.of_queue,
        defaults=GenerationParameters(top_k=5),
        resources={"CPU": 0.25},
    )
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(("num_gpus", "share"), [(0.5, 0.5), (1, 1.0), (2, 1.0), (0, 1.0)])
def test_a_fraction_of_a_gpu_is_a_share_of_its_memory(num_gpus: float, share: float) -> None:
    assert ReplicaOptions.from_config(MINI, Placement("cuda", 2, num_gpus, None), LIMITS).gpu_share == share


def test_the_weights_have_to_fit_into_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def loads(*arguments: object, gpu_share: float, **others: object) -> None:
        shares.append(gpu_share)
        raise CheckpointError("not here")

    monkeypatch.setattr("phi3_serve.engine.loader.load", loads)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    options = ReplicaOptions.from_config(MINI, Placement("cuda", 2, 0.5, None), LIMITS)
    with pytest.raises(CheckpointError, match="not here"):
        load_model(options, on_fatal_error=lambda _: None, on_progress=lambda _: None)
    assert shares == [0.5]
