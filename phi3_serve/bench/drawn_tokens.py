"""A vocabulary like that of Phi-3, of words drawn at random: what a mask costs depends on the tokens' bytes."""

import random
import string

BYTES_FROM = 3  # the first ids are control tokens


class DrawnTokens:
    """``text.constraint.Tokens``: three control tokens, the bytes, and words, of which half begin with a space."""

    control_ids = frozenset(range(BYTES_FROM))
    drops_first_space = True

    def __init__(self, vocab_size: int) -> None:
        draw = random.Random(0)  # noqa: S311 - words, not secrets
        found = dict.fromkeys([*(b"<%d>" % i for i in self.control_ids), *(bytes([i]) for i in range(256))])
        letters, others = string.ascii_lowercase, string.ascii_letters + string.digits + string.punctuation
        while len(found) < vocab_size:
            length = min(16, 1 + int(draw.expovariate(0.2)))
            word = "".join(draw.choice(letters if draw.random() < 0.9 else others) for _ in range(length))
            found[(" " * draw.randrange(2) + word).encode()] = None
        self._tokens = list(found)

    def piece(self, token_id: int) -> bytes:
        """See ``Tokens``."""
        return self._tokens[token_id]

    def encode_text(self, text: str) -> list[int]:
        """See ``Tokens``."""
        return [BYTES_FROM + byte for byte in text.encode()]
