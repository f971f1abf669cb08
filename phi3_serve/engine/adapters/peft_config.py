"""``adapter_config.json`` of PEFT: which layers an adapter changes, with which rank and scaling. Plain Python.

The rules are those of ``LoraConfig``, ``check_target_module_exists`` and ``get_pattern_key`` in PEFT 0.21.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3_serve.core.adapter import MAX_ADAPTER_STRENGTH
from phi3_serve.engine.adapters.patterns import PatternError, Patterns
from phi3_serve.engine.checkpoint_config import read_json
from phi3_serve.errors import CheckpointError

logger = logging.getLogger("phi3_serve")

FILE = "adapter_config.json"
MAX_RANK = 256
MAX_BYTES = 1_000_000  # of the file, which is parsed while other threads wait
_MAX_SCALING = (2 - 2**-23) * 2**127 / MAX_ADAPTER_STRENGTH  # float32 has it with every strength
_MAX_NAMES = 1_000  # in one field
_SHOWN = 100  # characters of a value in a message

# Fields that change what is computed in ways that the engine does not have. Each is allowed to be empty.
_REFUSED = (
    *("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out", "trainable_token_indices", "layer_replication"),
    *("target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config"),
    *("monteclora_config", "velora_config"),
)
# The others, such as pissa and olora, change the weights of the base model, too.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
_ALL_LINEAR = "all-linear"  # every linear layer but the head
_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Rank:
    """The rank of the change of one layer, and what multiplies the change."""

    rank: int
    scaling: float


class PeftConfig:
    """The fields of one ``adapter_config.json``."""

    def __init__(self, directory: Path) -> None:
        """Read and check the file.

        Raises:
            CheckpointError: a field has a value that the engine cannot honour exactly.
        """
        self.file = directory / FILE
        self._fields = read_json(self.file, MAX_BYTES)
        self._require(self._fields.get("peft_type") == "LORA", "peft_type", "LORA")
        for field in _REFUSED:
            self._require(not self._fields.get(field), field, "none")
        self._require(self._fields.get("bias", "none") == "none", "bias", "none")
        shown = ", ".join(json.dumps(value) for value in _INITIALISATIONS)
        self._require(self._fields.get("init_lora_weights", True) in _INITIALISATIONS, "init_lora_weights", shown)
        for field in ("rank_pattern", "alpha_pattern"):
            self._require(isinstance(self._fields.get(field) or {}, dict), field, "an object of patterns")
        for field in ("target_modules", "exclude_modules", "layers_pattern"):
            self._require(
                _is_names(self._fields.get(field)), field, f"a pattern or a list of at most {_MAX_NAMES} names"
            )
        self._require(
            _is_layers(self._fields.get("layers_to_transform")),
            "layers_to_transform",
            f"at most {_MAX_NAMES} numbers of layers",
        )
        self._patterns = Patterns()
        self._check_patterns()

    def ranks(self, modules: Sequence[str]) -> dict[str, Rank]:
        """Of those of ``modules``, paths in the base model, that the adapter changes.

        As in PEFT, a name that no module has is passed over if another one fits. KAITO's adapters for Phi-3 also name
        q_proj, k_proj and v_proj.

        Raises:
            CheckpointError: it names none of them, or a rank is out of range.
        """
        changed = {module: self._rank(module) for module in modules if self._is_target(module)}
        if not changed:
            raise self._none_is_changed(modules)
        targets = self._fields.get("target_modules")
        names = targets if isinstance(targets, list) else []
        if lacking := [name for name in names if not any(_has([name], module) for module in modules)]:
            logger.warning("%s: target_modules has %s, which the model lacks", self.file, _shown(", ".join(lacking)))
        return changed

    def _rank(self, module: str) -> Rank:
        field, rank = self._of_pattern("rank_pattern", module, ("r", self._fields.get("r", 8)))
        self._require(_is_whole(rank) and 1 <= rank <= MAX_RANK, field, f"1 to {MAX_RANK}", rank)
        field, alpha = self._of_pattern("alpha_pattern", module, ("lora_alpha", self._fields.get("lora_alpha", 8)))
        is_number = _is_whole(alpha) or isinstance(alpha, float)
        divisor = math.sqrt(rank) if self._fields.get("use_rslora") else rank
        allowed = f"finite numbers, from -{_MAX_SCALING:.3g} to {_MAX_SCALING:.3g} when divided by {divisor:g}"
        is_alpha = is_number and abs(alpha) <= _MAX_SCALING * divisor  # also for integers that no float has
        self._require(is_alpha, field, allowed, alpha)
        return Rank(rank, alpha / divisor)

    def _of_pattern(self, field: str, module: str, otherwise: tuple[str, Any]) -> tuple[str, Any]:
        """``field`` and the value of its first pattern that ``module`` ends with; else ``otherwise``."""
        for pattern, value in (self._fields.get(field) or {}).items():
            if self._groups(field, _of_module(pattern), module) is not None:
                return field, value
        return otherwise

    def _is_target(self, module: str) -> bool:
        if self._fields.get("exclude_modules") and self._matches("exclude_modules", module):
            return False
        return self._is_named(module) and self._is_in_layers(module)

    def _is_named(self, module: str) -> bool:
        targets = self._fields.get("target_modules")
        if targets == _ALL_LINEAR:
            return module != _HEAD
        return bool(targets) and self._matches("target_modules", module)

    def _is_in_layers(self, module: str) -> bool:
        layers, targets = self._fields.get("layers_to_transform"), self._fields["target_modules"]
        if layers is None or layers == [] or isinstance(targets, str) or module in targets:
            return True  # as in PEFT, which takes a path in full whatever the layers
        for pattern in self._layers_patterns():
            if (found := self._groups("layers_pattern", pattern, module)) is not None:
                return int(found["idx"]) in ([layers] if isinstance(layers, int) else layers)
        return False

    def _layers_patterns(self) -> list[str]:
        names = self._fields.get("layers_pattern") or r"[^.]*"
        return [rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\." for name in ([names] if isinstance(names, str) else names)]

    def _none_is_changed(self, modules: Sequence[str]) -> CheckpointError:
        """The error that names the field which leaves no module."""
        named = [module for module in modules if self._is_named(module)]
        if not named:
            allowed = sorted({module.rpartition(".")[2] for module in modules})
            targets = _shown(self._fields.get("target_modules"))
            problem = (
                f"target_modules is {targets}, which no layer of the model matches; allowed are {', '.join(allowed)}"
            )
        elif not any(self._is_in_layers(module) for module in named):
            layers, pattern = (_shown(self._fields.get(field)) for field in ("layers_to_transform", "layers_pattern"))
            highest = max(int(part) for module in modules for part in module.split(".") if part.isdecimal())
            problem = (
                f"layers_to_transform is {layers} and layers_pattern is {pattern}, which no layer of target_modules "
                f"matches; allowed are layers 0 to {highest}, and the pattern layers"
            )
        else:
            excluded = _shown(self._fields["exclude_modules"])
            problem = f"exclude_modules is {excluded}, which leaves no layer; allowed: to leave one of target_modules"
        return CheckpointError(f"{self.file}: {problem}")

    def _matches(self, field: str, module: str) -> bool:
        """Whether ``field``, a pattern or names, has ``module``."""
        value = self._fields[field]
        if not isinstance(value, str):
            return _has(value, module)
        with self._naming(field, value):
            return self._patterns.is_full_match(value, module)

    def _groups(self, field: str, pattern: str, module: str) -> dict[str, str] | None:
        with self._naming(field, pattern):
            return self._patterns.groups(pattern, module)

    def _check_patterns(self) -> None:
        """Refuse what is no regular expression where PEFT takes one, in the form that PEFT makes of it."""
        patterns = [
            (field, _of_module(pattern))
            for field in ("rank_pattern", "alpha_pattern")
            for pattern in self._fields.get(field) or {}
        ]
        for field in ("target_modules", "exclude_modules"):
            if isinstance(value := self._fields.get(field), str):
                patterns.append((field, value))
        patterns += [("layers_pattern", pattern) for pattern in self._layers_patterns()]
        for field, pattern in patterns:
            with self._naming(field, pattern):
                self._patterns.add(pattern)

    @contextmanager
    def _naming(self, field: str, pattern: str) -> Iterator[None]:
        """Say which field has the pattern that cannot be used."""
        try:
            yield
        except PatternError as error:
            raise CheckpointError(f"{self.file}: {field}: {_shown(pattern)} {error}") from None

    def _require(self, is_met: bool, field: str, allowed: str, value: Any = None) -> None:
        if not is_met:
            shown = _shown(self._fields.get(field) if value is None else value)
            raise CheckpointError(f"{self.file}: {field} is {shown}; allowed: {allowed}")


def _of_module(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _has(names: Sequence[str], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_names(value: Any) -> bool:
    return value is None or _is_text(value) or _are_all(_is_text, value)


def _is_layers(value: Any) -> bool:
    return value is None or _is_whole(value) or _are_all(_is_whole, value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_all(is_one: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_NAMES and all(map(is_one, value))
