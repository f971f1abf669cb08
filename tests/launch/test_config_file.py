"""The config file is read strictly, and the one that is shipped is what the code's defaults say."""

from pathlib import Path

import pytest

from phi3_serve.config.app import AppConfig
from phi3_serve.launch.config_file import ConfigError, parse, read

ROOT = Path(__file__).parents[2]
GOOD = """
http_options: {host: 127.0.0.1, port: 8000}
applications:
  - name: phi3
    route_prefix: /
    import_path: phi3_serve.serving.app:build_app
    args:
      models:
        - name: phi-3-tiny
"""

APPLICATION_NAME = "must be 1 to 64 letters, digits and . _ -"


def test_the_shipped_config_is_the_default_config() -> None:
    shipped = read(ROOT / "serve_config.yaml").app
    assert shipped.models == AppConfig().models
    assert shipped.default_model_name == AppConfig().default_model_name == "phi-3-tiny"


def test_the_shipped_config_declares_every_variant_as_the_design_says() -> None:
    tiny, *real = read(ROOT / "serve_config.yaml").app.models
    assert (tiny.name, tiny.min_replicas) == ("phi-3-tiny", 1)
    assert [m.name for m in real] == [
        "phi-3-mini-4k-instruct",
        "phi-3-mini-128k-instruct",
        "phi-3-medium-4k-instruct",
        "phi-3-medium-128k-instruct",
        "phi-3.5-mini-instruct",
    ]
    assert {m.min_replicas for m in real} == {0}


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("http_options", "http_option", "unknown key `http_option`; did you mean `http_options`?"),
        ("port: 8000", "prt: 8000", "http_options: unknown key `prt`; did you mean `port`?"),
        ("route_prefix", "route_prefx", "applications[0]: unknown key `route_prefx`; did you mean `route_prefix`?"),
        ("- name: phi-3-tiny", "- nme: phi-3-tiny", "args.models[0]: unknown key `nme`; did you mean `name`?"),
        ("models:", "modls:", "args: unknown key `modls`; did you mean `models`?"),
        (
            "    args:",
            "    deployments: [{name: ingress, user_config: {auth: {keys: [{name: a, hsh: b}]}}}]\n    args:",
            "applications[0].deployments[0].user_config.auth.keys.0: unknown key `hsh`; did you mean `hash`?",
        ),
        (
            "    args:",
            "    deployments: [{name: phi-3-tiny, user_config: {auth: {}}}]\n    args:",
            "applications[0].deployments[0].user_config: unknown key `auth`; valid keys: limits, defaults, adapters",
        ),
        (
            "    args:\n      models:\n        - name: phi-3-tiny",
            "    deployments: [{name: phi-3-tiny, user_config: {limits: {}}}]\n    args:\n      models:\n"
            "        - name: phi-3-tiny\n          adapters: [{name: poet, source: /poet}]",
            "applications[0].deployments[0].user_config: must have `adapters`; without it, those of args are not "
            "offered: poet",
        ),
        (
            "build_app",
            "built_app",
            "must hold one application with import_path phi3_serve.serving.app:build_app, and holds 0",
        ),
        (
            "port: 8000",
            "port: many",
            "http_options.port: Input should be a valid integer, unable to parse string as an integer",
        ),
        (
            "args:",
            "deployments: [{name: x, max_queued_request: 3}]\n    args:",
            "applications[0].deployments[0]: unknown key `max_queued_request`; did you mean `max_queued_requests`?",
        ),
        (
            "- name: phi-3-tiny",
            "- {name: phi-3-tiny, num_cpus: 0}",
            "args.models[0].num_cpus: Input should be greater than 0",
        ),
        ("- name: phi-3-tiny", "  name: phi-3-tiny", "args.models: must be a list, as `[a, b]`"),
        ("- name: phi-3-tiny", "- phi-3-tiny", "args.models[0]: must be a mapping, as `key: value`"),
        (
            "- name: phi-3-tiny",
            "- name: phi-3-tiny\n          dtype: float32\n          dtype: bfloat16",
            "is not YAML: the key `dtype` is in line 10 and again in line 11",
        ),
        (
            "    args:",
            "    deployments: [{name: phi-3-tiny, user_config: {defaults: {num_beam_groups: 3}}}]\n    args:",
            "applications[0].deployments[0].user_config.defaults: `num_beam_groups` is 3, but has to divide `num_beams`, "
            "which is 1.",
        ),
        (
            "- name: phi-3-tiny",
            "- {name: phi-3-tiny, defaults: {temperature: 0}}",
            "args.models[0].defaults: `temperature` is 0, but has to be a strictly positive float of at least 1e-06 when "
            "`do_sample` is true. If you're looking for greedy decoding, set `do_sample=False`.",
        ),
        (
            "- name: phi-3-tiny",
            "- {name: phi-3-tiny, defaults: {choice: [a], regex: b}}",
            "args.models[0].defaults: `regex` and `choice` exclude each other; send one of them.",
        ),
        (
            "args:\n      models:\n        - name: phi-3-tiny",
            "deployments: [{name: phi-3-tiny, user_config: {defaults: {num_beams: 4}}}]\n    args:\n      models:\n"
            "        - {name: phi-3-tiny, defaults: {num_beam_groups: 3}}",
            "applications[0].deployments[0].user_config.defaults, together with args.models[0].defaults: "
            "`num_beam_groups` is 3, but has to divide `num_beams`, which is 4.",
        ),
    ],
)
def test_a_typo_is_named_with_its_place(old: str, new: str, text: str) -> None:
    assert parse(GOOD).app.models[0].name == "phi-3-tiny"
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace(old, new))
    assert caught.value.message == text


PREFIX_RULE = (
    "applications[0].route_prefix: must be / or a path as /phi, with letters, digits and . _ ~ - in each part and "
    "without / at the end, and is "
)
HTTP = "http_options: {host: 127.0.0.1, port: 8000}"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("route_prefix: /", "route_prefix: phi", f"{PREFIX_RULE}'phi'"),
        ("route_prefix: /", "route_prefix: /phi/", f"{PREFIX_RULE}'/phi/'"),
        ("route_prefix: /", "route_prefix: '/a b'", f"{PREFIX_RULE}'/a b'"),
        ("route_prefix: /", "route_prefix: '/{model}'", f"{PREFIX_RULE}'/{{model}}'"),
        ("route_prefix: /", "route_prefix: //", f"{PREFIX_RULE}'//'"),
        (
            "route_prefix: /",
            "route_prefix: null",
            "applications[0].route_prefix: must not be null; without it, nothing listens to HTTP",
        ),
        ("name: phi3", "name: phi#3", f"applications[0].name: {APPLICATION_NAME}, and is 'phi#3'"),
        ("name: phi3", "name: team/phi", f"applications[0].name: {APPLICATION_NAME}, and is 'team/phi'"),
        ("name: phi3", "name: phi 3", f"applications[0].name: {APPLICATION_NAME}, and is 'phi 3'"),
        (
            "args:",
            "runtime_env: {env_vars: {A: 1}}\n    args:",
            "applications[0].runtime_env: runtime_env['env_vars'] must be of type Dict[str, str], but the value 1 is of type "
            "<class 'int'>",
        ),
        ("port: 8000", "port: 99999", "http_options.port: must be from 1 to 65535, and is 99999"),
        ("port: 8000", "port: true", "http_options.port: must be a number, not true or false"),
        ("port: 8000", "port: -5", "http_options.port: must be from 1 to 65535, and is -5"),
        ("port: 8000", "port: 0", "http_options.port: must be from 1 to 65535, and is 0"),
        (
            HTTP,
            "grpc_options: {port: 70000, grpc_servicer_functions: [a.b]}",
            "grpc_options.port: must be from 1 to 65535, and is 70000",
        ),
        (
            "port: 8000",
            "root_path: phi",
            "http_options.root_path: must begin with / and not end with it, and is 'phi'",
        ),
        ("port: 8000", "request_timeout_s: 0", "http_options.request_timeout_s: must be above 0, and is 0"),
        ("port: 8000", "keep_alive_timeout_s: -1", "http_options.keep_alive_timeout_s: must be above 0, and is -1"),
        (
            "port: 8000",
            "ssl_keyfile: key.pem",
            "http_options: ssl_certfile and ssl_keyfile must be given together",
        ),
        (
            "port: 8000",
            "ssl_certfile: gone.pem, ssl_keyfile: gone.pem",
            "http_options.ssl_certfile: cannot be loaded with ssl_keyfile: No such file or directory",
        ),
        ("host: 127.0.0.1", "host: ''", "http_options.host: must be an address, such as 127.0.0.1, and is empty"),
        (
            HTTP,
            "proxy_location: Disabled",
            "proxy_location: must be EveryNode or HeadOnly; with Disabled, nothing listens to HTTP",
        ),
        (HTTP, "target_capacity: 0", "target_capacity: must be above 0; with 0, no replica runs"),
        (
            "args:",
            "deployments: [{name: phi-3-tinny, num_replicas: 2}]\n    args:",
            "applications[0].deployments[0].name: unknown deployment `phi-3-tinny`; did you mean `phi-3-tiny`?",
        ),
        (
            "args:",
            "deployments: [{name: ingress, user_config: {}}, {name: ingress, user_config: {}}]\n    args:",
            "applications[0].deployments[1].name: `ingress` has an entry already; put both into one",
        ),
        (
            "args:",
            "deployments: [{name: ingress, user_config: {limits: {request_timeout_s: 0}}}]\n    args:",
            "applications[0].deployments[0].user_config.limits.request_timeout_s: Input should be greater than 0",
        ),
    ],
)
def test_a_value_that_breaks_the_start_is_refused(old: str, new: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace(old, new))
    assert caught.value.message == text


@pytest.mark.parametrize("prefix", ["/", "/phi", "/phi/v1.0", "/~a_b-c"])
def test_a_route_prefix_that_ray_and_haproxy_take(prefix: str) -> None:
    assert parse(GOOD.replace("route_prefix: /", f"route_prefix: {prefix}")).route_prefix == prefix


def test_a_merge_of_yaml_may_be_overridden() -> None:
    models = "models: [&first {name: a, source: /x, min_replicas: 0}, {<<: *first, name: b}]"
    given = parse(GOOD.replace("models:\n        - name: phi-3-tiny", models)).app.models
    assert [(model.name, model.min_replicas) for model in given] == [("a", 0), ("b", 0)]


def test_defaults_of_a_user_config_apply_together_with_those_of_args() -> None:
    groups = "deployments: [{name: phi-3-tiny, user_config: {defaults: {num_beam_groups: 3, diversity_penalty: 1}}}]"
    beams = "- {name: phi-3-tiny, defaults: {num_beams: 6, do_sample: false}}"
    assert parse(GOOD.replace("args:", f"{groups}\n    args:").replace("- name: phi-3-tiny", beams)).app.models
    beams = "deployments: [{name: phi-3-tiny, user_config: {defaults: {num_beams: 6}}}]"
    answers = "- {name: phi-3-tiny, defaults: {num_return_sequences: 2, do_sample: false}}"
    assert parse(GOOD.replace("args:", f"{beams}\n    args:").replace("- name: phi-3-tiny", answers)).app.models


def test_where_it_listens() -> None:
    file = parse(GOOD)
    assert (file.host, file.port, file.route_prefix) == ("127.0.0.1", 8000, "/")
    everywhere = parse(GOOD.replace("http_options: {host: 127.0.0.1, port: 8000}", ""))
    assert (everywhere.host, everywhere.port) == ("0.0.0.0", 8000)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is not a Serve config: it holds no mapping"), ("- a", "is not a Serve config: it holds no mapping")],
)
def test_a_file_that_is_no_config(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.message == message


def test_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "gone.yaml")
    assert caught.value.message == f"{tmp_path}/gone.yaml: No such file or directory"
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert caught.value.message == f"{path}: is not UTF-8 text"
    path.write_text("a: [")
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert caught.value.message.startswith(f"{path}: is not YAML: ")


def test_the_command_line_replaces_host_and_port(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "applications: [{import_path: 'phi3_serve.serving.app:build_app'}]\nhttp_options: {keep_alive_timeout_s: 7}"
    )
    file = read(path, {"host": "::1", "port": 9000})
    assert (file.host, file.port) == ("::1", 9000)
    assert file.content["http_options"] == {"keep_alive_timeout_s": 7, "host": "::1", "port": 9000}
    with pytest.raises(ConfigError, match=r"http_options\.port: must be from 1 to 65535, and is 0"):
        read(path, {"port": 0})
