"""One answer of a server, while it streams."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from http import HTTPStatus
from typing import Any

from phi3_serve.client import Client, Refused
from phi3_serve.errors import EngineFailure

_PATH = "/v1/chat/completions"
_LONGEST_WAIT_S = 10.0


class Answer:
    """The answer to ``body``: its texts, and what it took. ``on_wait`` gets the reason while the model is not ready."""

    def __init__(self, client: Client, body: Mapping[str, Any], on_wait: Callable[[str], None]) -> None:
        self._client = client
        self._body = body
        self._on_wait = on_wait
        self.texts: dict[int, str] = {}  # by index, if the parameters ask for several
        self.was_cut = False  # at its maximum length
        self.prompt_tokens = 0
        self.tokens = 0
        self.logprobs: list[float] = []  # of all tokens, if the body asks for them
        self.first_after_s: float | None = None
        self.seconds = 0.0

    @property
    def text(self) -> str:
        """The text of the first sequence, as far as it has come."""
        return self.texts.get(0, "")

    def pieces(self) -> Generator[str]:
        """The pieces of ``text`` as they come.

        Raises:
            Refused: the server does not answer this, or not now.
            Unreachable: the server does not answer, or the answer breaks off.
            EngineFailure: the server failed in the middle of the answer.
        """
        begun, events = self._begin()
        with closing(events):
            for event in events:
                if "error" in event:
                    raise EngineFailure(event["error"]["message"])
                yield from filter(None, map(self._take, event["choices"]))
                usage = event.get("usage") or {}
                self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
                self.tokens = usage.get("completion_tokens", self.tokens)
                self.seconds = time.monotonic() - begun
                if self.first_after_s is None and self.texts:
                    self.first_after_s = self.seconds

    def _take(self, choice: Mapping[str, Any]) -> str:
        """Add a choice of an event. Returns the new piece of ``text``."""
        index, piece = choice["index"], choice["delta"].get("content") or ""
        if piece:
            self.texts[index] = self.texts.get(index, "") + piece
        scored = (choice.get("logprobs") or {}).get("content") or ()
        self.logprobs += (token["logprob"] for token in scored)
        self.was_cut |= choice.get("finish_reason") == "length"
        return piece if index == 0 else ""

    def _begin(self) -> tuple[float, Generator[Any]]:
        """When the server took the request, and its events; waits until the model is ready."""
        while True:
            begun = time.monotonic()
            events = self._client.stream(_PATH, self._body)
            try:
                first = next(events)
            except Refused as refused:
                if refused.status != HTTPStatus.SERVICE_UNAVAILABLE or refused.retry_after_s is None:
                    raise
                self._on_wait(refused.message)
                time.sleep(min(refused.retry_after_s, _LONGEST_WAIT_S))
            else:
                return begun, _chained(first, events)


def _chained(first: Any, rest: Iterator[Any]) -> Generator[Any]:
    """``first`` and ``rest``; closing this closes ``rest``, which ends the answer on the server."""
    yield first
    yield from rest
