"""Limits on requests."""

from pydantic import Field

from phi3_serve.config.strict_model import StrictModel


class QueueLimitsConfig(StrictModel):
    """Limits of the queue of a replica."""

    max_waiting_requests: int = Field(default=64, ge=0)
    """Maximum number of waiting requests in a replica, without the running ones; more get 429."""
    max_waiting_tokens: int = Field(default=2**18, ge=1)
    """Maximum number of prompt tokens of all waiting requests in a replica; more get 429."""


class LimitsConfig(QueueLimitsConfig):
    """Limits on one request, and on all requests together."""

    max_body_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Maximum size of a request body; a larger one gets 413."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Maximum seconds between two pieces of a request body; then 408."""
    queue_timeout_s: float | None = Field(default=None, gt=0)
    """Maximum seconds that a request waits in the replica before it starts; then 429. By default no limit for a stream,
    and 50 s for a plain request, or as long as its header `Prefer: wait` says."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Maximum seconds from arrival in the replica to the last token; then 408."""

    @property
    def of_queue(self) -> QueueLimitsConfig:
        """The limits that a replica applies itself."""
        return QueueLimitsConfig(
            max_waiting_requests=self.max_waiting_requests, max_waiting_tokens=self.max_waiting_tokens
        )
