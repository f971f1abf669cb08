from typing import Any

import pytest

from phi3_serve.config.app import AppConfig
from phi3_serve.errors import Phi3ServeError
from phi3_serve.launch.capacity import check_cores


def config(*models: dict[str, Any], **http: Any) -> AppConfig:
    named = [{"name": f"m{number}", "source": "a/b", **model} for number, model in enumerate(models)]
    return AppConfig.model_validate({"models": named, "http": http})


CPU = {"device": "cpu"}


def test_the_default_config_fits_two_cores_with_and_without_a_gpu() -> None:
    check_cores(AppConfig(), num_cores=2, has_gpu=False)
    check_cores(AppConfig(), num_cores=2, has_gpu=True)


def test_four_cpu_models_on_two_cores_are_refused_with_the_numbers_and_the_keys() -> None:
    with pytest.raises(Phi3ServeError) as error:
        check_cores(config(CPU, CPU, CPU, CPU), num_cores=2, has_gpu=False)
    assert error.value.message == (
        "4 CPU cores are reserved at the start (m0 1, m1 1, m2 1, m3 1), and this machine has 2. "
        "Set `num_cpus` of the models to at most 0.5 each, or `min_replicas: 0` for some of them."
    )


def test_what_the_message_proposes_fits() -> None:
    check_cores(config(*[{**CPU, "num_cpus": 0.5}] * 4), num_cores=2, has_gpu=False)
    check_cores(config(CPU, *[{**CPU, "min_replicas": 0}] * 3), num_cores=2, has_gpu=False)


def test_each_replica_counts() -> None:
    with pytest.raises(Phi3ServeError, match=r"3 CPU cores .* \(m0 3\), .* at most 0\.66 each"):
        check_cores(config({**CPU, "min_replicas": 3, "max_replicas": 3}), num_cores=2, has_gpu=False)


def test_the_ingress_counts() -> None:
    with pytest.raises(Phi3ServeError, match=r"5 CPU cores .* ingress 4\), .* Set a lower `http\.num_cpus`"):
        check_cores(config(CPU, replicas=4, num_cpus=1), num_cores=2, has_gpu=False)


@pytest.mark.parametrize("model", [{"device": "cuda"}, {"device": "auto"}])
def test_a_gpu_replica_counts_where_there_is_a_gpu(model: dict[str, Any]) -> None:
    both = config({**model, "num_cpus": 1}, {**model, "num_cpus": 1})
    with pytest.raises(Phi3ServeError, match=r"2 CPU cores"):
        check_cores(both, num_cores=1, has_gpu=True)


def test_a_gpu_replica_takes_no_core_where_there_is_no_gpu() -> None:
    check_cores(config(*[{"device": "cuda"}] * 9), num_cores=2, has_gpu=False)


def test_this_machine_is_counted_as_ray_counts_it() -> None:
    with pytest.raises(Phi3ServeError, match=r"99999\.5 CPU cores .* this machine has \d+\."):
        check_cores(config({**CPU, "num_cpus": 99_999.5}))
