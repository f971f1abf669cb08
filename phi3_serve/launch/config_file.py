"""A Serve config file, read strictly: Ray drops keys that it does not know without a word."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from phi3_serve import strict_yaml
from phi3_serve.config.app import AppConfig
from phi3_serve.config.strict_model import problem_of_boolean, unknown_key_message
from phi3_serve.errors import Phi3ServeError
from phi3_serve.launch.serve_values import deployment_problems, value_problems

Model = TypeVar("Model", bound=BaseModel)

_MAPPING = "must be a mapping, as `key: value`"
_LIST = "must be a list, as `[a, b]`"
# Pydantic's types of errors, whose messages name Python's types.
_IN_WORDS_OF_YAML = {
    **dict.fromkeys(("model_type", "dict_type", "dataclass_type"), _MAPPING),
    **dict.fromkeys(("tuple_type", "list_type"), _LIST),
}
IMPORT_PATH = "phi3_serve.serving.app:build_app"


class ConfigError(Phi3ServeError):
    """A config file that cannot be served; the message has one line per problem."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a checked file says."""

    app: AppConfig
    host: str
    port: int
    route_prefix: str
    has_tls: bool
    content: Mapping[str, Any]  # all of it, with what the command line replaces


def read(path: Path, http_options: Mapping[str, Any] | None = None) -> ConfigFile:
    """Check the file at ``path``, every level of it. ``http_options`` replace those of the file.

    Raises:
        ConfigError: the file is missing, is not YAML, has an unknown key or a wrong value.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), http_options)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in error.message.splitlines())) from None


def parse(text: str, http_options: Mapping[str, Any] | None = None) -> ConfigFile:
    """As ``read``, for the text of a config."""
    try:
        content = strict_yaml.load(text)
    except yaml.YAMLError as error:
        raise ConfigError("is not YAML: " + " ".join(str(error).split())) from None
    if not isinstance(content, dict):
        raise ConfigError("is not a Serve config: it holds no mapping")
    if http_options:
        content["http_options"] = {**(content.get("http_options") or {}), **http_options}
    _refuse(_problems_in_yaml(content, ServeDeploySchema, ""))
    deploy = _validated(ServeDeploySchema, content, "")
    _refuse(value_problems(deploy))
    ours = [number for number, a in enumerate(deploy.applications) if a.import_path == IMPORT_PATH]
    if len(ours) != 1:
        raise ConfigError(f"must hold one application with import_path {IMPORT_PATH}, and holds {len(ours)}")
    application, http = deploy.applications[ours[0]], deploy.http_options
    app = _validated(AppConfig, application.args, "args")
    _refuse(deployment_problems(f"applications[{ours[0]}].deployments", application.deployments, app))
    return ConfigFile(
        app,
        host=http.host or "0.0.0.0",  # noqa: S104 - Ray's default
        port=http.port,
        route_prefix=application.route_prefix or "/",
        has_tls=bool(http.ssl_certfile),
        content=content,
    )


def _refuse(problems: Iterable[str]) -> None:
    if lines := list(problems):
        raise ConfigError("\n".join(lines))


def _validated(model: type[Model], content: Any, where: str) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error, where))) from None


def _problems_in_yaml(content: Any, schema: Any, where: str) -> list[str]:
    """One line per key of ``content`` that ``schema``, or a schema within it, does not have, or that has no number."""
    if isinstance(content, list):
        return [line for i, item in enumerate(content) for line in _problems_in_yaml(item, schema, f"{where}[{i}]")]
    models = _models_in(schema)
    if not isinstance(content, dict) or not models:
        return []
    known = {name: field for model in models for name, field in model.model_fields.items()}
    aliases = {field.alias for field in known.values() if field.alias}
    lines = []
    for key, value in content.items():
        here = f"{where}.{key}" if where else str(key)
        if key in known:
            lines += _problems_in_yaml(value, known[key].annotation, here)
            if problem := problem_of_boolean(value, known[key].annotation):
                lines.append(f"{here}: {problem}")
        elif key not in aliases:
            lines.append((f"{where}: " if where else "") + unknown_key_message(str(key), list(known)))
    return lines


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that ``annotation`` allows: itself, or those inside unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _lines(error: ValidationError, where: str) -> list[str]:
    """One line per problem: where it is, and pydantic's or our own sentence."""
    lines = []
    for problem in error.errors():
        place = where
        for part in problem["loc"]:
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
        message = _IN_WORDS_OF_YAML.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    return lines
