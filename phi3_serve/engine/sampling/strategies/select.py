"""Which strategy a request gets."""

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.sampling.stopping import StoppingCriteria
from phi3_serve.engine.sampling.strategies.base import Strategy
from phi3_serve.engine.sampling.strategies.beam_search import BeamSearch
from phi3_serve.engine.sampling.strategies.group_beam_search import GroupBeamSearch
from phi3_serve.engine.sampling.strategies.independent_sequences import IndependentSequences


def strategy_for(request: EngineRequest, stopping: StoppingCriteria, long_factors_from: int | None) -> Strategy:
    """The strategy that ``request.parameters`` ask for; ``long_factors_from``: see ``CachedSequence``."""
    parameters = request.parameters
    if not parameters.is_beam_search:
        return IndependentSequences(request, stopping, long_factors_from)
    if parameters.num_beam_groups == 1:
        return BeamSearch(request, stopping, long_factors_from)
    return GroupBeamSearch(request, stopping, long_factors_from)
