"""What every wire format does with a request: find its model, run it, count it, take its last event."""

from collections.abc import AsyncGenerator, AsyncIterator

from phi3_serve import catalogue
from phi3_serve.config import AppConfig
from phi3_serve.core import Backend, Delta, Done, GenerationRequest
from phi3_serve.errors import EngineFailure, UnknownModel, nearest
from phi3_serve.observability.metrics import RequestMetrics

NO_END = "The answer broke off before its end."
Events = AsyncGenerator[Delta | Done, None]


class Answering:
    """The backend, as the routes use it."""

    def __init__(self, backend: Backend, config: AppConfig) -> None:
        self.backend = backend
        self.config = config
        self.measurements = RequestMetrics()
        self._served = [model.served_name for model in config.models]

    def model_named(self, name: str | None) -> str:
        """The served model that ``name`` spells; the default one for None.

        Raises:
            UnknownModel: no served model has this name.
        """
        found = self.config.default_model_name if name is None else catalogue.find(name, self._served)
        if found is None:
            hint = nearest(str(name), self._served)
            known = f"did you mean {hint}?" if hint else f"served are {', '.join(self._served)}."
            raise UnknownModel(f"Model {str(name)[:128]} is not served here; {known}", "model")
        return found

    def events(self, request: GenerationRequest) -> Events:
        """The events of ``request``, counted."""
        return self.measurements.measured(request.model, self.backend.generate(request))


async def last(events: AsyncIterator[Delta | Done]) -> Done:
    """The whole answer, once it is there."""
    async for event in events:
        if isinstance(event, Done):
            return event
    raise EngineFailure(NO_END)
