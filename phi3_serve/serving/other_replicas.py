"""Whether other replicas of a model answer while one of them cannot load it."""

import logging
from enum import Enum, auto

from ray import serve

from phi3_serve.config.model_name import deployment_name
from phi3_serve.serving.cluster import num_answering
from phi3_serve.serving.load_status import read_load_statuses
from phi3_serve.serving.loaded_replica import last_loaded
from phi3_serve.serving.replica_options import ReplicaOptions

logger = logging.getLogger("phi3_serve")


class Others(Enum):
    """The other replicas of the same model."""

    NONE = auto()  # none answers
    SAME_VERSION = auto()  # some answer, and one of the same version has loaded
    EARLIER_VERSION = auto()  # some answer, and none of the same version has loaded
    UNKNOWN = auto()  # Ray's head or controller is away


def find_others(options: ReplicaOptions) -> Others:
    """The others of a replica that starts with ``options``. Serve does not count it as running yet."""
    try:
        app_name, name = serve.get_replica_context().app_name, deployment_name(options.name)
        deployment = serve.status().applications[app_name].deployments[name]
        if num_answering(deployment, read_load_statuses(app_name).get(options.name, ())) <= 0:
            return Others.NONE
        loaded = last_loaded(f"{app_name}#{name}")
    except Exception:  # Ray raises many kinds
        logger.warning("%s: the other replicas cannot be read", options.name, exc_info=True)
        return Others.UNKNOWN
    is_same = loaded is not None and loaded.version == options.version
    return Others.SAME_VERSION if is_same else Others.EARLIER_VERSION
