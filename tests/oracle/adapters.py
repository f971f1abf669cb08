"""Adapters made by PEFT, and the oracle that applies them: ``peft`` over ``transformers``."""

import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import Phi3ForCausalLM

from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.core.engine_event import Finished
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.engine.loaded_model import LoadedModel
from tests.oracle.reference import Oracle
from training.modules import load_with_modules

SIZE = 0.2  # of random matrices, as of the weights in tests.random_checkpoint
# What an adapter can say of its layers, each in one way at least.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "all": {"r": 4, "lora_alpha": 8, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]},
    "stable": {"r": 9, "lora_alpha": 6, "use_rslora": True, "target_modules": ["qkv_proj", "down_proj"]},
    "patterns": {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": r".*\.(o_proj|gate_up_proj|down_proj)",
        "rank_pattern": {"o_proj": 1, r"layers\.1\.mlp\.down_proj": 17},
        "alpha_pattern": {"mlp.gate_up_proj": 2},
    },
    "some_layers": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["o_proj", "mlp.down_proj"],
        "layers_to_transform": [1],
    },
    "linear": {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"},
    "head": {
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["lm_head", "o_proj"],
        "exclude_modules": ["layers.0.self_attn.o_proj"],
    },
}


def save_adapters(loaded: LoadedModel, directory: Path, kinds: Iterable[str] = KINDS, seed: int = 0) -> Any:
    """Save an adapter of each of ``kinds`` in a folder of its name; the model has all of them within itself then."""
    from peft import LoraConfig  # takes seconds to import

    model = _with_random_adapters(loaded.model, {kind: LoraConfig(**KINDS[kind]) for kind in kinds}, SIZE, SIZE, seed)
    model.save_pretrained(directory, save_embedding_layers=False)
    return model.eval()


def save_adapter(
    directory: Path, checkpoint: Path, *, seed: int, rank: int = 4, targets: str | list[str] = "all-linear"
) -> Path:
    """Save an adapter of the layers ``targets`` of ``checkpoint`` in ``directory``, which is returned.

    It changes answers a little, so that they stay varied.
    """
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    base = Phi3ForCausalLM.from_pretrained(checkpoint, dtype="float32")
    _with_random_adapters(base, {"default": config}, 0.2, 0.05, seed).save_pretrained(directory)
    return directory


def _with_random_adapters(model: Any, configs: Mapping[str, Any], size_a: float, size_b: float, seed: int) -> Any:
    """PEFT's model around ``model``, with matrices of these standard deviations drawn from ``seed``."""
    from peft import PeftModel, get_peft_model

    with _without_warnings():
        for name, config in configs.items():
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
            else:
                model = get_peft_model(model, config, adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                size = size_b if "lora_B" in name else size_a
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


@contextmanager
def _without_warnings() -> Iterator[None]:
    """PEFT 0.21 asks a property of models that transformers 5 has renamed."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        yield


class AdapterOracle(Oracle):
    """Answers of ``model.generate`` with the adapters that a request names."""

    @classmethod
    def reading(cls, checkpoint: Path, saved: Mapping[str, Path]) -> Self:
        """The oracle of ``checkpoint``, by transformers, with the adapters in ``saved``, by PEFT."""
        from peft import PeftModel

        base: Any = Phi3ForCausalLM.from_pretrained(checkpoint, dtype="float32")
        (first, place), *others = saved.items()
        with _without_warnings():
            model = PeftModel.from_pretrained(base, str(place), adapter_name=first)
        for name, directory in others:
            model.load_adapter(str(directory), adapter_name=name)
        return cls(replace(load_with_modules(checkpoint), model=base.eval()))

    def answer(self, request: EngineRequest) -> Finished | Failed:
        """See ``Oracle``. The model holds the adapters within itself."""
        self._apply({applied.adapter.name: applied.strength for applied in request.adapters})
        return super().answer(request)

    def greedy(self, prompt: Sequence[int], num_tokens: int, **strengths: float) -> list[int]:
        """The greedy answer of ``num_tokens`` to ``prompt`` with the adapters of ``strengths``."""
        self._apply(strengths)
        ids = torch.tensor([list(prompt)])
        lengths = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
        with torch.inference_mode():
            found = self._model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths)
        answer: list[int] = found[0, len(prompt) :].tolist()
        return answer

    def _apply(self, strengths: Mapping[str, float]) -> None:
        from peft.tuners.lora import LoraLayer

        for layer in self._model.modules():
            if isinstance(layer, LoraLayer):
                layer.set_adapter(list(strengths))
                for name, strength in strengths.items():
                    layer.set_scale(name, strength)


class AdapterDraw:
    """Draws the adapters of requests."""

    def __init__(self, adapters: Iterable[Any], seed: int) -> None:
        """``adapters``: as the engine has loaded them."""
        self._adapters = list(adapters)
        self._draw = random.Random(seed)
        self._prompts: list[tuple[int, ...]] = []

    def adapters(self) -> tuple[AppliedAdapter, ...]:
        """None for some requests, one for most, else several."""
        count = self._draw.choice([0, 0, 1, 1, 1, 2, 3])
        chosen = self._draw.sample(self._adapters, min(count, len(self._adapters)))
        return tuple(AppliedAdapter(one, self._draw.choice([1.0, 1.0, 0.7, -0.5, 1.5, 0.0])) for one in chosen)

    def prompt(self, drawn: tuple[int, ...]) -> tuple[int, ...]:
        """``drawn``, or one that an earlier request had, perhaps with other adapters."""
        if self._prompts and self._draw.random() < 0.5:
            return self._draw.choice(self._prompts[-8:])
        self._prompts.append(drawn)
        return drawn
