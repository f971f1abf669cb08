"""``routing: prefix`` of the config, and where requests with adapters go, as request routers of Ray Serve.

Ray has two similar routers. ``PrefixCacheAffinityRouter`` asks an actor about every request and blocks the event loop
meanwhile. ``ConsistentHashRouter`` knows only sessions and ignores the load.
"""

import random
from typing import TYPE_CHECKING

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.serving.prefixes import PrefixTable, adapter_keys, prefix_keys

if TYPE_CHECKING:
    from ray.serve._private.common import RequestMetadata


class PrefixRouter(FIFOMixin, RequestRouter):
    """Prefers the replica that has the request's session or prefix in its cache, unless that replica is too busy.

    A chosen replica is given to the request with this id, as ``RequestRouter`` does, or else to the oldest one, as
    ``FIFOMixin`` does. All requests of one HTTP call have the same id, and Ray knows only the first by it. For the
    others, ``RequestRouter`` alone chooses replicas forever, without a pause for the event loop.
    """

    def initialize_state(self, **kwargs: object) -> None:
        """Start with an empty table; each ingress has its own."""
        self._table: PrefixTable[ReplicaID] = PrefixTable()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The chosen replica, then all others, in case the chosen one accepts no more requests."""
        if not candidate_replicas:
            return []
        if pending_request is not None:  # if all replicas are full, Ray waits before it asks again
            pending_request.routing_context.should_backoff = True
        shuffled = random.sample(
            candidate_replicas, len(candidate_replicas)
        )  # so that equally loaded replicas take turns
        keys = self._keys(pending_request)
        loads = {r.replica_id: self.replica_queue_len_cache.get(r.replica_id) or 0 for r in shuffled}
        chosen = self._table.choose(keys, loads)
        first = [r for r in shuffled if r.replica_id == chosen]
        others = [r for r in shuffled if r.replica_id != chosen]
        return [first, others] if others else [first]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Record the replica that Serve has sent the request to."""
        self._table.record(self._keys(pending_request), replica_id)

    def _get_pending_request_matching_metadata(
        self, request_metadata: "RequestMetadata | None" = None
    ) -> PendingRequest | None:
        return self._get_pending_request_matching_internal_request_id(request_metadata)

    def _keys(self, pending: PendingRequest | None) -> list[int]:
        request = pending.args[0] if pending and pending.args else None
        return self._keys_of(request) if isinstance(request, GenerationRequest) else []

    @staticmethod
    def _keys_of(request: GenerationRequest) -> list[int]:
        return prefix_keys(request)


class AdapterRouter(PrefixRouter):
    """Prefers the replica that has the request's adapters in memory, unless that replica is too busy."""

    @staticmethod
    def _keys_of(request: GenerationRequest) -> list[int]:
        return adapter_keys(request)
