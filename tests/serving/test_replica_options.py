"""The options of a replica are what the config says, resolved."""

import pickle

from phi3_serve.catalogue import VARIANTS
from phi3_serve.config import LimitsConfig, ModelConfig
from phi3_serve.parameters import GenerationParameters
from phi3_serve.serving.placement import Placement
from phi3_serve.serving.replica_options import ReplicaOptions

LIMITS = LimitsConfig(max_waiting_requests=3)


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
        num_threads=1,  # a part of a core is still one thread
        stuck_after_s=7,
        limits=LIMITS.of_queue,
        defaults=GenerationParameters(top_k=5),
        resources={"CPU": 0.25},
    )
    assert pickle.loads(pickle.dumps(options)) == options
