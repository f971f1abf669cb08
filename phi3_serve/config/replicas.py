"""How the replicas of a model come, go and are replaced."""

from pydantic import Field

from phi3_serve.config.strict_model import StrictModel


class ScalingConfig(StrictModel):
    """When replicas are added and removed. It has an effect only with max_replicas above min_replicas."""

    target_load: float | None = Field(default=None, gt=0)
    """Running and waiting requests per replica above which another replica starts; by default three quarters of the
    rows of a batch: 192 on a GPU, 96 on a CPU. A need of 35 % of the key-value caches starts another one, too."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """Seconds above target_load before a replica is added. The first replica of a sleeping model starts at once."""
    downscale_delay_s: float = Field(default=600.0, ge=0)
    """Seconds below target_load before a replica is removed."""
    sleep_after_s: float | None = Field(default=None, ge=0)
    """Idle seconds before the last replica stops; by default downscale_delay_s. Only with min_replicas 0."""
    look_back_s: float = Field(default=15.0, gt=0)
    """Seconds over which the load is averaged; above 10, because replicas report it every 10 s."""


class HealthConfig(StrictModel):
    """When a replica counts as broken and is replaced."""

    check_period_s: float = Field(default=10.0, gt=0)
    """Seconds between two checks."""
    check_timeout_s: float = Field(default=30.0, gt=0)
    """Timeout of one check in seconds. Three failed checks end the replica."""
    stuck_after_s: float = Field(default=300.0, gt=0)
    """Seconds after which one step of the engine counts as hung."""


class RolloutConfig(StrictModel):
    """How a new version replaces an old one."""

    max_surge_percent: int | None = Field(default=None, ge=0, le=100)
    """New replicas that may start before old ones stop, in percent of the replicas. By default 100 on a CPU. By default
    0 on a GPU, because the old replica holds the GPU; a single replica then does not answer during a rollout."""
    drain_timeout_s: float | None = Field(default=None, ge=0)
    """Seconds for which a stopping replica may finish its requests; by default limits.request_timeout_s."""
