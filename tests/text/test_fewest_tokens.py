"""The bound is never above the number of tokens that the tokenizer makes."""

import json
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.core.generation_request import RequestOptions
from phi3_serve.core.prompt import Conversation, Message, RawPrompt
from phi3_serve.core.tokenization import TokenizationRequest
from phi3_serve.errors import PromptTooLong
from phi3_serve.text import token_limit
from phi3_serve.text.fewest_tokens import FewestTokens

MINI = Path(__file__).parents[1] / "data" / "tokenizers" / "phi-3-mini.tokenizer.json"
FILES = {"tiny": EMBEDDED_TINY / "tokenizer.json", "mini": MINI}
OPTIONS = RequestOptions(timeout_s=60)


@cache
def known(name: str) -> tuple[tokenizers.Tokenizer, FewestTokens]:
    tokenizer = tokenizers.Tokenizer.from_file(str(FILES[name]))
    return tokenizer, FewestTokens(tokenizer)


PIECES = st.sampled_from(
    ["<|end|>", "<|assistant|>", "\n" * 50, " " * 40, "\u2003", "the", "castle", "ü", "你", "🦄", "\0"]
)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(PIECES | st.text(max_size=20), max_size=20))
def test_it_is_a_lower_bound(name: str, pieces: list[str]) -> None:
    text, (tokenizer, fewest) = "".join(pieces), known(name)
    assert fewest.of(text, 0) <= len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", FILES)
def test_it_is_known_of_phi_3_and_near_enough(name: str) -> None:
    tokenizer, fewest = known(name)
    text = "The quick brown fox jumps over the lazy dog. " * 2000
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert fewest.of(text, num_tokens // 20) > num_tokens // 20
    assert fewest.of(text, num_tokens) == 0


@pytest.mark.parametrize("name", FILES)
def test_characters_that_no_token_has_count_by_their_bytes(name: str) -> None:
    tokenizer, fewest = known(name)
    for text, num_tokens in (
        ("\U0001f9ff" * 100, 400),
        ("\u2fff" * 100, 300),
        ("\u0378" * 100, 200),
        ("\0" * 100, 100),
    ):
        assert fewest.of(text, num_tokens - 1) == num_tokens
        assert num_tokens <= len(tokenizer.encode(text, add_special_tokens=False).ids) <= num_tokens + 1
        assert fewest.of(text, num_tokens) == 0


@pytest.mark.parametrize("name", FILES)
def test_a_character_that_only_short_tokens_have_counts_more(name: str) -> None:
    tokenizer, fewest = known(name)
    text = "7" * 1000
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert num_tokens // 8 < fewest.of(text, num_tokens // 8) <= num_tokens


@pytest.mark.parametrize("name", FILES)
def test_whitespace_counts_unless_a_control_token_swallows_it(name: str) -> None:
    tokenizer, fewest = known(name)
    for whitespace in (" ", "\n", "\u2003 "):
        text = whitespace * 10_000
        assert 600 < fewest.of(text, 600) <= len(tokenizer.encode(text, add_special_tokens=False).ids)
        assert fewest.of(f"a<|end|>{text}", 0) == 1


@pytest.mark.parametrize("options", [{"lstrip": True}, {"rstrip": True, "normalized": True}])
def test_whitespace_counts_only_where_it_is_known_which_is_swallowed(options: dict[str, bool]) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(MINI))
    tokenizer.add_tokens([tokenizers.AddedToken("<|new|>", **options)])
    assert FewestTokens(tokenizer).of(" " * 10_000, 0) == 0
    assert FewestTokens(tokenizer).of(" " * 10_000 + "a" * 160, 0) == 10


def test_nothing_is_known_of_a_tokenizer_that_may_drop_characters() -> None:
    cutting = tokenizers.Tokenizer.from_file(str(MINI))
    cutting.normalizer = tokenizers.normalizers.Strip()
    without_bytes = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [], unk_token="a"))
    description = json.loads(MINI.read_text())
    description["model"]["byte_fallback"] = (
        False  # the bytes are in the vocabulary, and unknown characters become one token
    )
    without_fallback = tokenizers.Tokenizer.from_str(json.dumps(description))
    words = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    of_words = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    for tokenizer in (cutting, without_bytes, without_fallback, of_words):
        assert FewestTokens(tokenizer).of("a" * 100_000, 1) == 0


def test_a_text_far_too_long_is_refused_before_it_is_encoded() -> None:
    from transformers import AutoTokenizer

    from phi3_serve.text.tokenizer import Phi3Tokenizer

    tokenizer = Phi3Tokenizer(AutoTokenizer.from_pretrained(EMBEDDED_TINY))
    long = "castle " * 500_000
    for prompt in (RawPrompt(long), RawPrompt("a", prefix=long), Conversation((Message("user", long),))):
        with pytest.raises(
            PromptTooLong, match=r"The prompt has at least \d+ tokens, but this model's context holds 2048"
        ):
            tokenizer.encode(prompt, limit=token_limit.of_context(2048))
        for finds in (True, False):
            asked = TokenizationRequest(model="m", prompt=prompt, finds_control_tokens=finds, options=OPTIONS)
            with pytest.raises(
                PromptTooLong, match=r"The prompt has at least \d+ tokens, but at most 131072 are encoded"
            ):
                tokenizer.tokenize(asked, limit=token_limit.of_encoding(2048))
    assert len(tokenizer.encode(RawPrompt(long[:100_000]))) > 2048
    assert len(tokenizer.encode(RawPrompt("\U0001f9ff" * 5000), limit=token_limit.of_context(2048))) == 20_001
    assert (
        len(tokenizer.encode(RawPrompt("<|user|>" + "\n" * 1_000_000 + "Hi"), limit=token_limit.of_context(2048))) < 10
    )
