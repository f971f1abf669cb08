"""Which layers an ``adapter_config.json`` changes: compared with PEFT, and refused if it would take too long."""

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from phi3_serve.engine.adapters.peft_config import PeftConfig
from phi3_serve.errors import CheckpointError

NAMES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
MODULES = [*(f"model.layers.{layer}.{name}" for layer in range(3) for name in NAMES), "lm_head"]
SIMPLE: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["o_proj"]}
NESTED = r"((m|o|d|e|l|\.|[a-z0-9_.])+)+x"
REPEATED_GROUPS = r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(?P<last>.*)(?P=last)[A-Z]"


def written(directory: Path, **fields: Any) -> PeftConfig:
    """A config with ``fields`` in place of those of a simple one."""
    config = {"peft_type": "LORA"} | SIMPLE | fields
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return PeftConfig(directory)


def refusal(directory: Path, **fields: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        written(directory, **fields).ranks(MODULES)
    message = caught.value.message
    assert message.startswith(f"{directory / 'adapter_config.json'}: ")
    assert "\n" not in message
    assert len(message) < 400 + len(str(directory))
    return message


def of_peft(**fields: Any) -> dict[str, tuple[int, float]]:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    config: Any = LoraConfig(**SIMPLE | fields)
    ranks = {}
    for module in MODULES:
        if check_target_module_exists(config, module):
            rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), module), config.r)
            alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), module), config.lora_alpha)
            ranks[module] = (rank, alpha / rank)
    return ranks


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": r".*\.(o|down)_proj"},
        {"target_modules": r"model\.layers\.[0-1]\.(self_attn|mlp)\.[a-z_]{6,12}"},
        {"target_modules": r"(?i).*O_PROJ"},
        {"target_modules": r"^(?!.*layers\.1\.).*(?:qkv_proj|down_proj)$"},
        {"target_modules": r"(?:.*?(?:layers).*?(?:self_attn|mlp).*?(?:o_proj|down_proj).*?)"},
        {"target_modules": ["o_proj", "down_proj"], "exclude_modules": r".*\.\d+\.mlp\..*"},
        {"target_modules": ["o_proj", "down_proj"], "exclude_modules": ["model.layers.0.mlp.down_proj"]},
        {"rank_pattern": {"o_proj": 2, r"layers\.0\.self_attn\.o_proj": 3}},
        {"rank_pattern": {r"layers.0.self_attn.o_proj|1\.self_attn\.o_proj": 3, "o_proj": 2}},
        {"rank_pattern": {"self_attn)|(mlp": 2}, "alpha_pattern": {r"^model\.layers\.1.*": 5}},
        {"layers_to_transform": 0},
        {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
        {"layers_to_transform": [1], "layers_pattern": "layer(s)"},
        {"layers_to_transform": [2, 7], "layers_pattern": "(?P<layer>layers)"},
        {"layers_to_transform": [1], "target_modules": ["model.layers.0.self_attn.o_proj", "down_proj"]},
    ],
)
def test_the_layers_are_those_of_peft(tmp_path: Path, fields: dict[str, Any]) -> None:
    ours = written(tmp_path, **fields).ranks(MODULES)
    theirs = of_peft(**fields)
    assert {module: (rank.rank, rank.scaling) for module, rank in ours.items()} == theirs != {}


@pytest.mark.parametrize("pattern", [NESTED, REPEATED_GROUPS], ids=["nested", "repeated_groups"])
@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"]
)
def test_an_endless_pattern_ends_and_stops_no_other_thread(
    tmp_path: Path, field: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``re`` would match for years. ``regex`` sees soon that the first one matches nothing."""
    value = {pattern: 2} if field in ("rank_pattern", "alpha_pattern") else pattern
    layers = {"layers_to_transform": [1]} if field == "layers_pattern" else {}
    monkeypatch.setattr("phi3_serve.engine.adapters.patterns.SECONDS", 0.5)
    turns, stop = [0], threading.Event()

    def turn() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0.005)

    thread = threading.Thread(target=turn)
    thread.start()
    turns[0], started = 0, time.monotonic()
    try:
        ranks, error = dict(written(tmp_path, **{field: value}, **layers).ranks(MODULES)), ""
    except CheckpointError as refused:
        ranks, error = {}, refused.message
    finally:
        seconds = time.monotonic() - started
        stop.set()
        thread.join()
    assert turns[0] >= int(20 * seconds)  # of 200 a second
    assert seconds < 30
    if pattern == REPEATED_GROUPS:
        assert f"{field}: " in error
        assert error.endswith("takes too long; allowed: at most 0.5 s for all patterns of a file")
    else:
        assert bool(ranks) == (field not in ("target_modules", "layers_pattern"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": "(" * 900}, "is no regular expression"),
        ({"target_modules": "a" * 1001}, "aa... has 1001 characters; allowed: at most 1000"),
        ({"rank_pattern": {"(?i)x": 2}}, 'rank_pattern: "(.*\\\\.)?((?i)x)$" is no regular expression: global flags'),
        ({"layers_pattern": "(?P<idx>layers)"}, "layers_pattern: "),
        ({"rank_pattern": {f"x{n}": 2 for n in range(1001)}}, "one pattern too many; allowed: at most 1000 in a file"),
        ({"target_modules": "(?:(?:(?:a{1000}){1000}){1000})"}, "has repetitions of [1000, 1000, 1000]; allowed"),
        ({"target_modules": "(o_prok){e<=1}"}, "has a { that is no repetition"),
        ({"target_modules": r"\p{L}*"}, "has a { that is no repetition"),
        ({"target_modules": r"\m.*"}, "is no regular expression: bad escape"),
        ({"target_modules": ["x"] * 1001}, "allowed: a pattern or a list of at most 1000 names"),
        ({"peft_type": "x" * 1000}, "xx...; allowed: LORA"),
        ({"lora_alpha": "x" * 1000}, "xx...; allowed: "),
        ({"lora_alpha": 1e39}, "is 1e+39; allowed: finite numbers, from -3.4e+37 to 3.4e+37 when divided by 4"),
        ({"lora_alpha": -1.4e38}, "is -1.4e+38; allowed: finite"),
        ({"lora_alpha": 10**400}, "000...; allowed: finite numbers"),
        ({"lora_alpha": math.nan}, "is NaN; allowed: finite numbers"),
        ({"alpha_pattern": {"o_proj": 1e39}, "use_rslora": True}, "3.4e+37 when divided by 2"),
        ({"r": 10**400}, "000...; allowed: 1 to 256"),
        ({"layers_to_transform": True}, "layers_to_transform is true; allowed: at most 1000 numbers of layers"),
        (
            {"layers_to_transform": [0, True]},
            "layers_to_transform is [0, true]; allowed: at most 1000 numbers of layers",
        ),
        ({"r": True}, ": r is true; allowed: 1 to 256"),
        ({"r": 1, "rank_pattern": {"o_proj": True}}, ": rank_pattern is true; allowed: 1 to 256"),
        ({"lora_alpha": True}, ": lora_alpha is true; allowed: finite numbers"),
        ({"alpha_pattern": {"o_proj": False}}, ": alpha_pattern is false; allowed: finite numbers"),
    ],
)
def test_a_pattern_is_refused_in_one_short_line(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layers_to_transform": [7]},
            "layers_to_transform is [7] and layers_pattern is null, which no layer of target_modules matches; "
            "allowed are layers 0 to 2, and the pattern layers",
        ),
        ({"layers_to_transform": 1, "layers_pattern": ["h"]}, 'layers_to_transform is 1 and layers_pattern is ["h"]'),
        ({"exclude_modules": ["o_proj"]}, 'exclude_modules is ["o_proj"], which leaves no layer'),
        ({"target_modules": ["x"], "layers_to_transform": [7]}, 'target_modules is ["x"], which no layer of the model'),
    ],
)
def test_the_field_that_leaves_no_layer_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, **fields)


def test_a_large_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, revision="x" * 900_000)
    monkeypatch.setattr(json, "loads", pytest.fail)
    assert "has 1000092 bytes; allowed: at most 1000000" in refusal(tmp_path, revision="x" * 1_000_000)
