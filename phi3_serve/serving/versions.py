"""The version of each deployment, made from what its own replicas start with.

Serve restarts the replicas of a deployment whose version has changed. Ray 2.60 gives all deployments of a Serve config
the version of the application, which is a hash of its import path, runtime environment and ``args``
(``ray.serve._private.deploy_utils.get_app_code_version``). An added model would so restart the replicas of all others.
A deployment's resources and runtime environment are no part of its version: Serve compares these itself.
"""

import hashlib

from pydantic_core import to_json
from ray.serve import Deployment
from ray.serve._private.config import DeploymentConfig

from phi3_serve import __version__


class _VersionedConfig(DeploymentConfig):
    """Options of a deployment that keep the first version that they get."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "version" or self.version is None:
            super().__setattr__(name, value)


def versioned(deployment: Deployment, *init_args: object) -> Deployment:
    """``deployment`` with a version of its own: a hash of ``init_args``, its class, and the version of phi3-serve.

    ``init_args`` are values that pydantic can write as JSON.
    """
    code = [__version__, repr(deployment.func_or_class)]
    options = deployment._deployment_config  # Ray 2.60 has no public option for the version
    kept = _VersionedConfig.model_construct(options.model_fields_set, **dict(options))
    kept.version = hashlib.sha256(to_json([code, init_args])).hexdigest()
    deployment._deployment_config = kept
    return deployment
