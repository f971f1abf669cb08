"""What restarts the replicas of a deployment: the arguments of its own replicas, and no other setting."""

from collections.abc import Mapping
from typing import Any

import pytest
from ray.serve._private.build_app import build_app as build
from ray.serve._private.config import DeploymentConfig

from phi3_serve.config.app import AppConfig
from phi3_serve.serving import versions
from phi3_serve.serving.app import build_application

ONE = {"name": "one", "source": "org/one", "device": "cpu"}
TWO = {"name": "two", "source": "org/two", "device": "cpu"}


def deployed(**args: Any) -> Mapping[str, tuple[str | None, object]]:
    """Version and actor options of each deployment as Ray's controller receives them.

    Ray's ``get_deploy_args`` sets the version of the application before.
    """
    application = build(build_application(AppConfig.model_validate(args)), name="phi3")
    sent = {}
    for deployment in application.deployments:
        options = deployment._deployment_config
        options.version = f"of the application {args}"
        received = DeploymentConfig.from_proto_bytes(options.to_proto_bytes())
        sent[deployment.name] = (received.version, deployment.ray_actor_options)
    return sent


def user_configs(**args: Any) -> Mapping[str, Any]:
    """What each deployment tells its running replicas."""
    application = build(build_application(AppConfig.model_validate(args)), name="phi3")
    return {deployment.name: deployment._deployment_config.user_config for deployment in application.deployments}


def test_an_added_model_and_a_key_restart_no_replica() -> None:
    before = deployed(models=[ONE])
    after = deployed(models=[ONE, TWO], auth={"key_hashes": ["0" * 64]}, limits={"max_body_bytes": 5000})
    assert set(after) == {"ingress", "one", "two"}
    assert after["one"] == before["one"]
    assert after["two"][0] != after["one"][0]
    assert after["ingress"][0] != before["ingress"][0]


@pytest.mark.parametrize(
    "change",
    [{"source": "org/other"}, {"revision": "main"}, {"dtype": "bfloat16"}, {"num_cpus": 2}, {"defaults": {"top_k": 3}}],
)
def test_a_change_of_a_model_restarts_its_own_replicas(change: dict[str, Any]) -> None:
    before, after = deployed(models=[ONE, TWO]), deployed(models=[{**ONE, **change}, TWO])
    assert after["one"] != before["one"]
    assert after["two"] == before["two"]


@pytest.mark.parametrize(
    "change",
    [{"max_replicas": 3}, {"scaling": {"target_load": 7}}, {"health": {"check_period_s": 5}}, {"routing": "prefix"}],
)
def test_options_that_serve_changes_in_place_restart_nothing(change: dict[str, Any]) -> None:
    assert deployed(models=[{**ONE, **change}])["one"] == deployed(models=[ONE])["one"]


def test_new_code_restarts_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    before = deployed(models=[ONE])
    monkeypatch.setattr(versions, "__version__", "0.0.0")
    after = deployed(models=[ONE])
    assert {name for name in after if after[name][0] == before[name][0]} == set()


def test_adapters_that_requests_name_restart_nothing() -> None:
    """They reach the running replicas as ``user_config``."""
    poet = {"name": "poet", "source": "org/poet", "strength": 0.5}
    offered, before = {**ONE, "adapters": [poet]}, deployed(models=[ONE])
    assert deployed(models=[offered])["one"] == before["one"]
    assert user_configs(models=[offered, TWO]) == {"one": {"adapters": [poet]}, "two": {}, "ingress": {}}
    merged = {**ONE, "adapters": [{**poet, "always": True}]}
    assert deployed(models=[merged])["one"] != before["one"]
    assert user_configs(models=[merged])["one"] == {}


def test_a_model_with_adapters_is_routed_by_them() -> None:
    offered = {**ONE, "adapters": [{"name": "poet", "source": "org/poet"}]}
    application = build(build_application(AppConfig.model_validate({"models": [offered, TWO]})), name="phi3")
    routers = {
        deployment.name: deployment._deployment_config.request_router_config.request_router_class
        for deployment in application.deployments
    }
    assert routers["one"] == "phi3_serve.serving.routing.AdapterRouter"
    assert routers["two"] != routers["one"]
