"""One request on its way through the engine."""

from collections.abc import Callable
from dataclasses import dataclass

from phi3_serve.core import EngineEvent, EngineRequest
from phi3_serve.engine.blocks import BLOCK_SIZE, NO_ROOM, BlockManager, Room
from phi3_serve.engine.decoding import Decoding


@dataclass(eq=False, slots=True)
class Generation:
    """A request, how it chooses its tokens, and the room its blocks lie in."""

    request: EngineRequest
    on_event: Callable[[EngineEvent], None]
    decoding: Decoding
    room: Room = NO_ROOM

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

    @property
    def room_wanted(self) -> int:
        """Blocks, if nothing ends early: the prompt once, and each row's answer.

        Rounded up to a power of two, so that rooms of about one size have one size; see attention.Grid.
        """
        answer = self.request.max_length - len(self.request.prompt_ids)
        wanted = sum(
            -(-len(family[0]) // BLOCK_SIZE) + self.decoding.num_rows * (-(-answer // BLOCK_SIZE) + 1)
            for family in self.decoding.families
            if family
        )
        return 1 << (wanted - 1).bit_length()

    def drop(self, blocks: BlockManager) -> None:
        """Give all blocks and the room back."""
        self.decoding.drop(blocks, self.room)
        blocks.release(self.room)
        self.room = NO_ROOM
