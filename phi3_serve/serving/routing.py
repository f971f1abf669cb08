"""``routing: prefix`` of the config, as Ray Serve takes a router.

Ray has two of its own. ``PrefixCacheAffinityRouter`` asks an actor about every request and blocks the event loop
meanwhile; ``ConsistentHashRouter`` follows sessions only, whatever the load.
"""

import random

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from phi3_serve.core import GenerationRequest
from phi3_serve.serving.prefixes import PrefixMemory, keys_of


class PrefixRouter(RequestRouter):
    """Sends a request where the start of its prompt, or its session, is in memory, unless that replica is busier."""

    def initialize_state(self, **kwargs: object) -> None:
        """Nothing is known yet; each ingress learns for itself."""
        self._memory: PrefixMemory[ReplicaID] = PrefixMemory()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks: the one replica, then all others, in case it takes no more."""
        if not candidate_replicas:
            return []
        shuffled = random.sample(candidate_replicas, len(candidate_replicas))  # equals take turns
        keys = _keys(pending_request)
        loads = {r.replica_id: self.replica_queue_len_cache.get(r.replica_id) or 0 for r in shuffled}
        chosen = self._memory.choose(keys, loads)
        first = [r for r in shuffled if r.replica_id == chosen]
        others = [r for r in shuffled if r.replica_id != chosen]
        return [first, others] if others else [first]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Remember where it went."""
        self._memory.remember(_keys(pending_request), replica_id)


def _keys(pending: PendingRequest | None) -> list[int]:
    request = pending.args[0] if pending and pending.args else None
    return keys_of(request) if isinstance(request, GenerationRequest) else []
