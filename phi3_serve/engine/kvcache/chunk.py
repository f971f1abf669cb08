"""What one step runs of one sequence. Plain Python, no tensors."""

from dataclasses import dataclass

from phi3_serve.engine.kvcache.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence to be run in one step."""

    sequence: Sequence
    num_tokens: int  # pending ones, then drafted ones
    num_logits: int  # of the last tokens the scores are wanted

    @property
    def start(self) -> int:
        """The position of the first token."""
        return self.sequence.num_cached

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.sequence.num_cached + self.num_tokens

    @property
    def token_ids(self) -> list[int]:
        """The ids to run."""
        sequence = self.sequence
        pending = sequence.tokens[self.start : self.end].tolist()
        return [*pending, *sequence.draft[: self.num_tokens - len(pending)]]
