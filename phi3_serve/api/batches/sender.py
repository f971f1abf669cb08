"""How a request of a batch is sent: after those of other clients, and again until it has an answer that counts."""

import asyncio
from collections import defaultdict
from dataclasses import replace
from http import HTTPStatus

from phi3_serve.api.batches.in_process import InProcessClient
from phi3_serve.api.batches.token_share import TokenShare
from phi3_serve.api.keys import ApiKey, ApiKeys
from phi3_serve.api.service import Service
from phi3_serve.batch.lines import Reply, RequestLine
from phi3_serve.batch.share import Share
from phi3_serve.errors import UnknownModel

UNAVAILABLE_RETRY_S = 30.0
"""Seconds before a request is sent again to a model that cannot answer now. A batch has a day to wait for it."""
FAILURE_RETRY_S = 5.0
"""Seconds before a request is sent again that got 500. If the whole server ends, its ingress has ended by then."""
_POLL_INTERVAL_S = 1.0


class BatchSender:
    """Sends requests of batches through ``client``."""

    def __init__(self, service: Service, keys: ApiKeys, client: InProcessClient) -> None:
        self._service = service
        self._keys = keys
        self._client = client
        self._tokens = defaultdict[str | None, TokenShare](TokenShare)
        self._share = Share(service.config.batches.share, service.backend.occupancy)

    def knows(self, owner: str | None) -> bool:
        """Whether ``owner`` may ask the server: the key still exists, or the server asks for none."""
        return not self._keys.are_required if owner is None else self._keys.named(owner) is not None

    async def send(self, owner: str | None, line: RequestLine) -> Reply:
        """The reply to ``line``; ``retry_after_s`` is set if it should be sent again."""
        reply = await self._send_once(owner, line)
        if reply.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            await asyncio.sleep(FAILURE_RETRY_S)
            reply = await self._send_once(owner, line)
        is_unavailable = reply.status == HTTPStatus.SERVICE_UNAVAILABLE and reply.retry_after_s is None
        if is_unavailable and not reply.is_of_adapter:  # such a line fails
            return replace(reply, retry_after_s=UNAVAILABLE_RETRY_S)
        return reply

    async def _send_once(self, owner: str | None, line: RequestLine) -> Reply:
        key, tokens = await self._key(owner), self._tokens[owner]
        with tokens.in_flight():
            model = self._model_of(line)
            if model is None:
                return await self._client.post(line.url, line.body, key)  # which refuses it
            async with self._share.place(model):
                reply = await self._client.post(line.url, line.body, key)
        self._service.metrics.count_batch_request(model, reply.status)
        if reply.is_answer:
            tokens.ended(reply.body["usage"]["total_tokens"])
        return reply

    def _model_of(self, line: RequestLine) -> str | None:
        """The model that ``line`` asks; None if it names none that is served."""
        name = line.body.get("model")
        if not isinstance(name, str | None):
            return None
        try:
            return self._service.model_named(name).model
        except UnknownModel:
            return None

    async def _key(self, owner: str | None) -> ApiKey | None:
        """The key of ``owner``; waits while it does not exist, and while it has too few tokens for one more request."""
        while True:
            key = None if owner is None else self._keys.named(owner)
            if self.knows(owner) and (key is None or self._tokens[owner].has_room(key)):
                return key
            await asyncio.sleep(_POLL_INTERVAL_S)
