"""The protocol of an engine: what a replica needs from what computes answers."""

from collections.abc import Callable
from typing import Protocol

from phi3_serve.core.adapter import Adapter
from phi3_serve.core.engine_event import EngineEvent
from phi3_serve.core.engine_info import EngineInfo, Load, QueueLimits
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine_statistics import EngineStatistics


class Engine(Protocol):
    """Token ids in, token ids out, without text, HTTP or Ray.

    Every method but ``load_adapter`` and ``close`` returns at once.
    """

    queue: QueueLimits
    """May be replaced at any time."""

    @property
    def info(self) -> EngineInfo:
        """What the engine runs on."""

    @property
    def load(self) -> Load:
        """The current load."""

    @property
    def statistics(self) -> EngineStatistics:
        """What the engine has counted since its start; it goes on counting."""

    def submit(self, request: EngineRequest, on_event: Callable[[EngineEvent], None]) -> None:
        """Queue ``request``. The engine's thread calls ``on_event`` with each event.

        The call takes milliseconds with a prompt of 100,000 tokens. It may come from any thread.

        Raises:
            InvalidRequest: a token id is not in the model's vocabulary, or the key-value cache is too small.
            Overloaded: the queue is full.
            EngineFailure: the engine is dead.
        """

    def announce_start(self, request_id: str) -> bool:
        """Whether the request still waits. If so, its event ``Started`` will come before the step that begins it."""

    def abort(self, request_id: str) -> None:
        """Stop the request within one step. No event follows. Unknown ids are ignored."""

    def load_adapter(self, name: str, directory: str) -> Adapter:
        """Read the LoRA adapter in ``directory``, as PEFT saves it, for requests that name it in ``adapters``.

        The call reads a file and may come from any thread. Steps go on meanwhile. The engine itself keeps no adapter.

        Raises:
            CheckpointError: the adapter cannot be read, or the engine cannot compute it exactly. The message is one
                line that names the file.
        """

    def check_health(self) -> None:
        """Raise EngineFailure if the thread is dead or has been in one step for too long."""

    def close(self) -> None:
        """Fail all requests and wait until the thread ends."""
