"""The CPU cores that a config reserves at its start, compared with those of this machine.

Ray starts replicas in any order. If they do not all fit, some models never start, and neither does an ingress that
reserves cores; each call then hangs.
"""

import math
from collections.abc import Iterator

from ray._private import accelerators, utils

from phi3_serve.config.app import AppConfig
from phi3_serve.errors import Phi3ServeError
from phi3_serve.serving.placement import place


def check_cores(config: AppConfig, *, num_cores: float | None = None, has_gpu: bool | None = None) -> None:
    """Check that the ingress and the replicas that start at once fit into ``num_cores`` CPU cores.

    Both arguments are by default what Ray will count on this machine. A replica for a GPU counts only if ``has_gpu``:
    without a GPU it never starts, and takes no core.

    Raises:
        Phi3ServeError: more cores are reserved than there are.
    """
    num_cores = utils.get_num_cpus() if num_cores is None else num_cores
    has_gpu = _machine_has_gpu() if has_gpu is None else has_gpu
    models = dict(_cores_by_model(config, has_gpu))
    ingress = config.http.num_cpus * config.http.replicas
    reserved = sum(models.values()) + ingress
    if reserved <= num_cores:
        return
    parts = ", ".join(f"{name} {cores:g}" for name, cores in [*models.items(), ("ingress", ingress)] if cores)
    raise Phi3ServeError(
        f"{reserved:g} CPU cores are reserved at the start ({parts}), and this machine has {num_cores:g}. "
        f"{_remedy(config, num_cores - ingress)}"
    )


def _cores_by_model(config: AppConfig, has_gpu: bool) -> Iterator[tuple[str, float]]:
    for model in config.models:
        placement = place(model, cluster_has_gpu=has_gpu, elastic=config.cluster.elastic)
        if model.min_replicas and (has_gpu or not placement.num_gpus):
            yield model.served_name, placement.num_cpus * model.min_replicas


def _remedy(config: AppConfig, cores_for_models: float) -> str:
    num_replicas = sum(model.min_replicas for model in config.models)
    share = math.floor(100 * cores_for_models / num_replicas) / 100 if num_replicas else 0.0
    if share <= 0:
        return "Set a lower `http.num_cpus` or `http.replicas`."
    return f"Set `num_cpus` of the models to at most {share:g} each, or `min_replicas: 0` for some of them."


def _machine_has_gpu() -> bool:
    manager = accelerators.get_accelerator_manager_for_resource("GPU")
    return manager is not None and manager.get_current_node_num_accelerators() > 0
