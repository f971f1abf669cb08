"""One request on its way through the engine."""

from collections.abc import Callable
from dataclasses import dataclass

from phi3_serve.core import EngineEvent, EngineRequest
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.sampling.strategies import Decoding


@dataclass(eq=False, slots=True)
class Generation:
    """A request, and how it chooses its tokens."""

    request: EngineRequest
    on_event: Callable[[EngineEvent], None]
    decoding: Decoding
    is_running: bool = False  # set by the scheduler, read by whoever counts those that wait
    has_begun: bool = False  # and stays so when it is pushed out

    @property
    def num_rows(self) -> int:
        """Sequences in a decode step."""
        return self.decoding.num_rows * (2 if self.decoding.shadows else 1)

    @property
    def num_pending(self) -> int:
        """Tokens to be run before the next ones can be chosen, drafted ones not counted."""
        return sum(sequence.num_pending for sequence in self.decoding.sequences)

    @property
    def num_blocks_short(self) -> int:
        """Blocks to be had before all that is pending has run; sequences share what they begin with."""
        return sum(
            sequence.num_blocks_short(sequence.num_pending)
            - (sequence.num_common_blocks(family[at - 1]) if at and sequence.is_cold else 0)
            for family in self.decoding.families
            for at, sequence in enumerate(family)
        )

    def drop(self, blocks: BlockManager) -> None:
        """Give all blocks back."""
        self.decoding.drop(blocks)
