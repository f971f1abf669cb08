from contextlib import suppress
from itertools import product
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from phi3_serve.config.app import AppConfig
from phi3_serve.config.defaults import problem_of_defaults
from phi3_serve.config.model import ModelConfig
from phi3_serve.config.model_name import deployment_name
from phi3_serve.config.user_config import LiveModelConfig

TINY = {"name": "phi-3-tiny"}
POET = {"name": "poet", "source": "/adapters/poet"}


def problem(args: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        AppConfig.model_validate(args)
    (error,) = caught.value.errors()
    place = ".".join(str(part) for part in error["loc"])
    return f"{place}: {error['msg'].removeprefix('Value error, ')}"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"defualt_model": "x"}, ": unknown key `defualt_model`; did you mean `default_model`?"),
        ({"models": [{**TINY, "sorce": "x"}]}, "models.0: unknown key `sorce`; did you mean `source`?"),
        (
            {"limits": {"zzz": 1}},
            "limits: unknown key `zzz`; valid keys: max_waiting_requests, max_waiting_tokens, max_body_bytes, "
            "body_timeout_s, queue_timeout_s, request_timeout_s",
        ),
        (
            {"models": [{"name": "phi-3-mini-5k-instruct"}]},
            "models.0: `phi-3-mini-5k-instruct` is not in the catalogue; did you mean `phi-3-mini-4k-instruct`? "
            "Otherwise give its `source`: a Hub repository id, a checkpoint directory or a GGUF file",
        ),
        (
            {"models": [{"name": "mine"}]},
            "models.0: `mine` is not in the catalogue; give its `source`: a Hub repository id, a checkpoint directory or a GGUF file",
        ),
        (
            {"models": [{"name": "mine", "source": "a/b", "file": "../model.gguf"}]},
            "models.0.file: must be the name of a .gguf file in the source, and is `../model.gguf`",
        ),
        (
            {"models": [{"name": "mine", "source": "a/b", "file": "model.safetensors"}]},
            "models.0.file: must be the name of a .gguf file in the source, and is `model.safetensors`",
        ),
        (
            {"models": [{**TINY, "file": "model.gguf"}]},
            "models.0: file is given without `source`, and the catalogue's sources have no GGUF files",
        ),
        ({"models": [TINY, TINY]}, ": model `phi-3-tiny` is declared twice"),
        (
            {"models": [{**TINY, "adapters": [{**POET, "name": "a:b"}]}]},
            "models.0.adapters.0.name: must be at most 64 letters, digits and . _ -, with a letter or a digit at both "
            "ends, and is `a:b`",
        ),
        (
            {"models": [{**TINY, "adapters": [{**POET, "name": "latest"}]}]},
            "models.0.adapters.0.name: must not be `latest`, which is ollama's tag of the model itself",
        ),
        ({"models": [{**TINY, "adapters": [POET, POET]}]}, "models.0.adapters: two adapters have the name `poet`"),
        (
            {"models": [{**TINY, "adapters": [{**POET, "strength": 11}]}]},
            "models.0.adapters.0.strength: Input should be less than or equal to 10",
        ),
        (
            {"models": [{**TINY, "adapters": [{**POET, "strength": True}]}]},
            "models.0.adapters.0.strength: must be a number, not true or false",
        ),
        ({"models": [{**TINY, "max_replicas": True}]}, "models.0.max_replicas: must be a number, not true or false"),
        (
            {"models": [{**TINY, "scaling": {"sleep_after_s": False}}]},
            "models.0.scaling.sleep_after_s: must be a number, not true or false",
        ),
        (
            {"models": [{**TINY, "adapters": [{**POET, "strenght": 1}]}]},
            "models.0.adapters.0: unknown key `strenght`; did you mean `strength`?",
        ),
        ({"models": [{**TINY, "adapters": [{"name": "poet"}]}]}, "models.0.adapters.0.source: Field required"),
        (
            {"models": [TINY], "default_model": "phi-3-tony"},
            ": default_model `phi-3-tony` is not one of models; did you mean `phi-3-tiny`?",
        ),
        ({"models": [TINY], "default_model": "zz"}, ": default_model `zz` is not one of models: phi-3-tiny"),
        (
            {"models": [{**TINY, "min_replicas": 3}]},
            "models.0: max_replicas is 1, below min_replicas, which is 3",
        ),
        (
            {"models": [{**TINY, "device": "gpu"}]},
            "models.0.device: Input should be 'auto', 'cpu' or 'cuda'",
        ),
        (
            {"models": [{**TINY, "cuda_graphs": "sometimes"}]},
            "models.0.cuda_graphs: Input should be a valid boolean, unable to interpret input",
        ),
        ({"models": []}, ": models is empty; declare at least one"),
        ({"models": [{**TINY, "source": ""}]}, "models.0.source: String should have at least 1 character"),
        (
            {"http": {"cors_origins": ["https://a.example", "https://b.example/"]}},
            "http.cors_origins: `https://b.example/` is not an origin as browsers send it: https:// or the like, a name in "
            "small letters, a port if it is not the usual one, and no / at the end; or * for all, or null",
        ),
        (
            {"models": [{**TINY, "num_gpus": 1.5}]},
            "models.0.num_gpus: must be a whole number if it is above 1, and is 1.5",
        ),
        (
            {"models": [{**TINY, "num_gpus": 0.00001}]},
            "models.0.num_gpus: must have at most four decimal places, and is 1e-05",
        ),
        (
            {"models": [{**TINY, "num_cpus": 0.33333}]},
            "models.0.num_cpus: must have at most four decimal places, and is 0.33333",
        ),
        ({"http": {"num_cpus": 0.00002}}, "http.num_cpus: must have at most four decimal places, and is 2e-05"),
        (
            {"models": [{**TINY, "accelerator_type": ""}]},
            "models.0.accelerator_type: String should have at least 1 character",
        ),
        (
            {"models": [{**TINY, "label_selector": {"a b": "c"}}]},
            "models.0.label_selector: `a b` is not a label: at most 63 letters, digits and . _ -, with a letter or a digit at both ends, and before it perhaps a domain and a slash",
        ),
        (
            {"http": {"label_selector": {"phi3-serve/group": "!gpu"}}},
            "http.label_selector: the value of phi3-serve/group is `!gpu`, and must be at most 63 letters, digits and . _ -, with a letter or a digit at both ends",
        ),
    ],
)
def test_a_wrong_config_is_refused_by_name(args: dict[str, Any], text: str) -> None:
    assert problem(args) == text


CHARACTERS = "must be 1 to 128 letters, digits and . _ - /"
ENDS = "must begin and end with a letter or a digit, and so must each part between slashes"
DASHES = "must not have --, which is written for a slash in the name of its deployment"
API = "must not be v1 or begin with v1/, as the paths of OpenAI's API do"
OLLAMA_API = "must not be api or begin with api/, as the paths of ollama's API do"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", CHARACTERS),
        ("in gress", CHARACTERS),
        ("model\n", CHARACTERS),
        ("a#b", CHARACTERS),
        ("a%2Fb", CHARACTERS),
        ("모델", CHARACTERS),
        ("m" * 129, CHARACTERS),
        ("a/" * 50 + "m" * 28, "must have at most 128 characters, each slash counted twice"),
        ("/a", ENDS),
        ("a/", ENDS),
        ("a//b", ENDS),
        ("a-/b", ENDS),
        ("a/-b", ENDS),
        ("..", ENDS),
        ("a/../b", ENDS),
        ("_a", ENDS),
        ("a--b", DASHES),
        ("a/b--c", DASHES),
        ("a---b", DASHES),
        ("ingress", "is the name of the deployment that receives HTTP"),
        ("v1", API),
        ("v1/a", API),
        ("api", OLLAMA_API),
        ("api/a", OLLAMA_API),
    ],
)
def test_a_name_that_no_url_or_deployment_can_have_is_refused(name: str, text: str) -> None:
    assert problem({"models": [{"name": name, "source": "/x"}]}) == f"models.0: name `{name}` {text}"


@pytest.mark.parametrize(
    ("name", "deployment"),
    [
        ("phi-3-mini-4k-instruct", "phi-3-mini-4k-instruct"),
        ("org/model", "org--model"),
        ("a/b/c-d_e.f", "a--b--c-d_e.f"),
        ("V1", "V1"),
        ("org/v1", "org--v1"),
        ("org/ingress", "org--ingress"),
        ("m" * 128, "m" * 128),
    ],
)
def test_a_model_s_deployment_has_its_name(name: str, deployment: str) -> None:
    (model,) = AppConfig.model_validate({"models": [{"name": name, "source": "/x"}]}).models
    assert model.served_name == name
    assert deployment_name(name) == deployment


def test_no_two_names_share_a_deployment() -> None:
    """Every name of up to six characters of these, of which some are refused."""
    allowed = []
    for length in range(1, 7):
        for letters in product("a-/", repeat=length):
            with suppress(ValidationError):
                allowed.append(ModelConfig(name="".join(letters), source="/x").name)
    assert len(allowed) > 40
    assert len({deployment_name(name) for name in allowed}) == len(allowed)


def test_the_first_model_is_the_default() -> None:
    config = AppConfig.model_validate({"models": [{"name": "mine", "source": "/x"}, TINY]})
    assert config.default_model_name == "mine"


def test_spellings_become_the_catalogues_name() -> None:
    config = AppConfig.model_validate(
        {"models": [{"name": "microsoft/Phi-3-mini-4k-instruct"}], "default_model": "phi3-mini-4k"}
    )
    assert config.default_model_name == config.models[0].served_name == "phi-3-mini-4k-instruct"


def test_the_pinned_revision_belongs_to_the_catalogues_source() -> None:
    pinned, fork, moved = AppConfig.model_validate(
        {
            "models": [
                {"name": "phi-3-mini-4k-instruct"},
                {"name": "phi-3-mini-128k-instruct", "source": "somebody/fork"},
                {"name": "phi-3-medium-4k-instruct", "revision": "main"},
            ]
        }
    ).models
    assert pinned.checkpoint_revision == "0a67737cc96d2554230f90338b163bc6380a2a85"
    assert fork.checkpoint_revision is None
    assert moved.checkpoint_revision == "main"


def test_parts_of_a_gpus_engine_can_be_turned_off() -> None:
    """With each of YAML's words for it."""
    for word in ("false", "off", "no"):
        model = ModelConfig(**yaml.safe_load(f"{{name: phi-3-tiny, cuda_graphs: {word}, flash_attention: {word}}}"))
        assert (model.cuda_graphs, model.flash_attention) == (False, False)
    default = ModelConfig.model_validate(TINY)
    assert (default.cuda_graphs, default.flash_attention) == (True, True)


def test_the_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AppConfig().limits.max_body_bytes = 1


@pytest.mark.parametrize(("given", "expected"), [("2026-11-30", "2026-11-30"), (7, "7"), (None, None)])
def test_reload_is_any_text(given: Any, expected: str | None) -> None:
    model = AppConfig.model_validate({"models": [{"name": "phi-3-tiny", "reload": given}]}).models[0]
    assert model.reload == expected


def test_a_date_for_reload_says_to_quote_it() -> None:
    """Ray sends the config as JSON, which has no dates."""
    models = yaml.safe_load("[{name: phi-3-tiny, reload: 2026-11-30}]")
    with pytest.raises(ValidationError, match="must be text; write a date in quotes"):
        AppConfig.model_validate({"models": models})


def test_origins_that_a_browser_sends() -> None:
    origins = (
        "https://chat.example.org",
        "http://127.0.0.1:3000",
        "http://[::1]:3000",
        "vscode-webview://a1b2",
        "null",
        "*",
    )
    assert AppConfig.model_validate({"http": {"cors_origins": origins}}).http.cors_origins == origins


@pytest.mark.parametrize("origin", ["https://Chat.example.org", "https://a.example:443", "http://a.example:80"])
def test_origins_that_no_browser_sends(origin: str) -> None:
    with pytest.raises(ValueError, match="is not an origin as browsers send it"):
        AppConfig.model_validate({"http": {"cors_origins": [origin]}})


def test_defaults_may_need_what_only_the_checkpoint_has() -> None:
    model = ModelConfig.model_validate({**TINY, "defaults": {"choice": ["yes", "no"], "temperature": 0.5}})
    assert model.defaults.choice == ["yes", "no"]
    assert problem_of_defaults(model.defaults) is None


def test_an_adapter_is_merged_or_offered() -> None:
    model = ModelConfig.model_validate({**TINY, "adapters": [POET, {**POET, "name": "tone", "always": True}]})
    assert [adapter.name for adapter in model.offered_adapters] == ["poet"]
    assert [adapter.name for adapter in model.merged_adapters] == ["tone"]


def test_a_running_replica_merges_nothing() -> None:
    with pytest.raises(ValidationError, match="`tone` has `always`, which restarts the replicas"):
        LiveModelConfig.model_validate({"adapters": [{**POET, "name": "tone", "always": True}]})
