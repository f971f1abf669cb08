"""Values of a Serve config that Ray's schema accepts, and with which no server starts or none answers."""

import re
import ssl
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.config import ProxyLocation
from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from phi3_serve.config.app import AppConfig
from phi3_serve.config.defaults import problem_of_defaults
from phi3_serve.config.model_name import INGRESS_NAME, deployment_name
from phi3_serve.config.user_config import LiveIngressConfig, LiveModelConfig
from phi3_serve.errors import did_you_mean
from phi3_serve.parameters import NONE_GIVEN, GenerationParameters

# HAProxy's configuration holds the prefix, so it has only characters that a URL needs not escape.
_ROUTE_PREFIX = re.compile(r"/|(?:/[A-Za-z0-9._~-]+)+")
# The names of log files and of HAProxy's backends hold it.
_APPLICATION_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_PORT = 65_535


def value_problems(config: ServeDeploySchema) -> Iterator[str]:
    """One line for each wrong value outside of the deployments: where it is, and the allowed range."""
    if config.proxy_location == ProxyLocation.Disabled:
        yield "proxy_location: must be EveryNode or HeadOnly; with Disabled, nothing listens to HTTP"
    if config.target_capacity == 0:
        yield "target_capacity: must be above 0; with 0, no replica runs"
    yield from _http_problems(config.http_options)
    if config.grpc_options.grpc_servicer_functions:
        yield from _port_problems("grpc_options.port", config.grpc_options.port)
    for number, application in enumerate(config.applications):
        yield from _application_problems(f"applications[{number}]", application)


def deployment_problems(where: str, deployments: Sequence[DeploymentSchema], app: AppConfig) -> Iterator[str]:
    """One line for each deployment at ``where`` that ``app`` does not have, or whose ``user_config`` is wrong.

    Also one for each model whose defaults contradict each other: those of ``user_config`` apply together with those of
    ``args``.
    """
    defaults: dict[str, tuple[str, GenerationParameters]] = {}
    names = [INGRESS_NAME, *(deployment_name(model.served_name) for model in app.models)]
    for number, deployment in enumerate(deployments):
        here = f"{where}[{number}]"
        if deployment.name in (earlier.name for earlier in deployments[:number]):
            yield f"{here}.name: `{deployment.name}` has an entry already; put both into one"
        if deployment.name not in names:
            hint = did_you_mean(deployment.name, names, f"; valid names: {', '.join(names)}")
            yield f"{here}.name: unknown deployment `{deployment.name}`{hint}"
        yield from _lost_adapters(here, deployment, app)
        schema = LiveIngressConfig if deployment.name == INGRESS_NAME else LiveModelConfig
        try:
            live = schema.model_validate(deployment.user_config if isinstance(deployment.user_config, dict) else {})
            if isinstance(live, LiveModelConfig):
                defaults[deployment.name] = (f"{here}.user_config.defaults", live.defaults)
        except ValidationError as error:
            for problem in error.errors():
                place = ".".join([f"{here}.user_config", *map(str, problem["loc"])])
                yield f"{place}: {problem['msg'].removeprefix('Value error, ')}"
    yield from _contradictions(app, defaults)


def _contradictions(app: AppConfig, live: Mapping[str, tuple[str, GenerationParameters]]) -> Iterator[str]:
    """``live``: by deployment, the place of the defaults of ``user_config``, and these defaults."""
    for number, model in enumerate(app.models):
        of_args = f"args.models[{number}].defaults"
        place, defaults = live.get(deployment_name(model.served_name), (of_args, NONE_GIVEN))
        if problem := problem_of_defaults(defaults.over(model.defaults)):
            if NONE_GIVEN not in (defaults, model.defaults):
                place = f"{place}, together with {of_args}"
            yield f"{of_args if defaults == NONE_GIVEN else place}: {problem}"


def _lost_adapters(here: str, deployment: DeploymentSchema, app: AppConfig) -> Iterator[str]:
    """Serve puts ``user_config`` in the place of the one with the adapters of ``args``."""
    if not isinstance(deployment.user_config, dict) or "adapters" in deployment.user_config:
        return
    for model in app.models:
        if deployment_name(model.served_name) == deployment.name and model.offered_adapters:
            names = ", ".join(adapter.name for adapter in model.offered_adapters)
            yield f"{here}.user_config: must have `adapters`; without it, those of args are not offered: {names}"


def _http_problems(http: HTTPOptionsSchema) -> Iterator[str]:
    if not http.host.strip():
        yield "http_options.host: must be an address, such as 127.0.0.1, and is empty"
    yield from _port_problems("http_options.port", http.port)
    if http.root_path and not _ROUTE_PREFIX.fullmatch(http.root_path):
        yield f"http_options.root_path: must begin with / and not end with it, and is {http.root_path!r}"
    if http.request_timeout_s is not None and http.request_timeout_s <= 0:
        yield f"http_options.request_timeout_s: must be above 0, and is {http.request_timeout_s:g}"
    if http.keep_alive_timeout_s <= 0:
        yield f"http_options.keep_alive_timeout_s: must be above 0, and is {http.keep_alive_timeout_s}"
    if bool(http.ssl_certfile) != bool(http.ssl_keyfile):
        yield "http_options: ssl_certfile and ssl_keyfile must be given together"
    elif http.ssl_certfile and http.ssl_keyfile:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                http.ssl_certfile, http.ssl_keyfile, http.ssl_keyfile_password
            )
        except OSError as error:  # SSLError is one
            yield f"http_options.ssl_certfile: cannot be loaded with ssl_keyfile: {error.strerror or error}"


def _port_problems(where: str, port: int) -> Iterator[str]:
    if not 1 <= port <= _MAX_PORT:
        yield f"{where}: must be from 1 to {_MAX_PORT}, and is {port}"


def _application_problems(where: str, application: ServeApplicationSchema) -> Iterator[str]:
    if not _APPLICATION_NAME.fullmatch(application.name):
        yield f"{where}.name: must be 1 to 64 letters, digits and . _ -, and is {application.name!r}"
    try:
        RuntimeEnv(**application.runtime_env)
    except (TypeError, ValueError) as error:
        yield f"{where}.runtime_env: {' '.join(str(error).split())}"
    prefix = application.route_prefix
    if prefix is None:
        yield f"{where}.route_prefix: must not be null; without it, nothing listens to HTTP"
    elif not _ROUTE_PREFIX.fullmatch(prefix):
        yield (
            f"{where}.route_prefix: must be / or a path as /phi, with letters, digits and . _ ~ - in each part and "
            f"without / at the end, and is {prefix!r}"
        )
