"""The token ids of 47 texts, as llama.cpp has recorded them with Phi-3's tokenizer."""

import pytest

from phi3_serve.core.prompt import RawPrompt
from phi3_serve.text.tokenizer import Phi3Tokenizer
from tests import real_tokenizer
from tests.real_tokenizer import TOKENIZERS

TEXTS = (TOKENIZERS / "phi-3.texts").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
IDS = [[int(i) for i in line.split()] for line in (TOKENIZERS / "phi-3.ids").read_text().split("\n")]


@pytest.fixture
def tokenizer() -> Phi3Tokenizer:
    return real_tokenizer.served()


def test_every_text_gets_the_recorded_ids(tokenizer: Phi3Tokenizer) -> None:
    assert len(TEXTS) == len(IDS) == 47
    assert [tokenizer.encode(RawPrompt(text)) for text in TEXTS] == IDS


def test_the_ids_are_read_back_as_the_text(tokenizer: Phi3Tokenizer) -> None:
    assert [tokenizer.decode(ids) for ids in IDS] == TEXTS
