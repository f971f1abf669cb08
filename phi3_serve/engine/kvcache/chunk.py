"""The tokens of one sequence that one step runs. Plain Python, no tensors."""

from dataclasses import dataclass

from phi3_serve.engine.kvcache.cached_sequence import CachedSequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence to run in one step."""

    sequence: CachedSequence
    num_tokens: int  # pending tokens, then drafted tokens
    num_logits: int  # how many of the last tokens need logits
    num_prompt_logits: int = 0  # how many of these logits, the first ones, score tokens of the prompt

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
        """The ids to run; -1 - n for the unread token with index n among the tokens that the last step chose."""
        sequence = self.sequence
        pending = sequence.tokens[self.start : self.end].tolist()
        if sequence.num_unread and self.end == len(sequence):
            pending.append(-1 - sequence.unread_index)
        return [*pending, *sequence.draft[: self.num_tokens - len(pending)]]

    @property
    def uses_long_factors(self) -> list[bool]:
        """For each token whether RoPE takes its long factors."""
        num_short = self.sequence.num_with_short_factors
        return [position >= num_short for position in range(self.start, self.end)]
