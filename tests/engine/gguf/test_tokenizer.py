"""The tokenizer of a GGUF file, compared with the tokenizer.json that it was written from."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from phi3_serve.core.prompt import Conversation, Message, Prompt, RawPrompt
from phi3_serve.engine.gguf.tokenizer import make_tokenizer
from phi3_serve.errors import CheckpointError
from phi3_serve.text.tokenizer import Phi3Tokenizer
from tests.engine.gguf.files import add_vocabulary

DATA = Path(__file__).parents[2] / "data" / "tokenizers"
VOCABULARY = 32_064
TEXTS = (
    "Hello, world!", " two  spaces", "  leading", "trailing  ", "\n\n\ttabs\t\n", "", " ", "naïve café — 你好 🦙🏽", "a" * 40,
    "<|user|>\nHi<|end|>\n<|assistant|>\n", "<|system|>  \n\n be brief<|end|> <|user|>x", "<s><s> a </s> b <unk> c",
    "<|endoftext|> stays <|placeholder3|>  swallows", "<|end|", "[PAD32011]", "\u2581already \u2581\u2581", "<0x41><0xFF>",
)  # fmt: skip


def metadata_of(tokenizer: dict[str, Any], config: dict[str, Any], vocab_size: int = VOCABULARY) -> dict[str, Any]:
    writer = gguf.GGUFWriter(None, "phi3")
    add_vocabulary(writer, tokenizer, config, vocab_size)
    return {key: field.value for key, field in writer.kv_data[0].items()}


def real(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tokenizer, which all variants share, and the tokenizer_config.json of one."""
    document, config = (
        json.loads((DATA / f"{file}.json").read_text()) for file in ("phi-3-mini.tokenizer", f"{name}.tokenizer_config")
    )
    return document, config


@pytest.fixture(scope="module")
def both() -> tuple[Any, Tokenizer]:
    """The tokenizer from metadata, and the real one."""
    document, config = real("phi-3-mini")
    made = make_tokenizer(metadata_of(document, config), Path("model.gguf"), vocab_size=VOCABULARY)
    return made, Tokenizer.from_str(json.dumps(document))


def test_the_merges_are_those_of_the_real_tokenizer(both: tuple[Any, Tokenizer]) -> None:
    made, theirs = (json.loads(t.to_str())["model"] for t in (both[0].backend_tokenizer, both[1]))
    assert [list(m) for m in made["merges"]] == [
        m.split(" ") if isinstance(m, str) else list(m) for m in theirs["merges"]
    ]
    assert theirs["vocab"].items() <= made["vocab"].items()


def test_the_ids_of_texts(both: tuple[Any, Tokenizer]) -> None:
    made, theirs = both
    cases = (DATA / "phi-3.texts").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    for text in (*TEXTS, *cases):
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert made.encode(text, add_special_tokens=False) == expected, text
        assert made.backend_tokenizer.decode(expected) == theirs.decode(expected)


def test_the_ids_that_llama_cpp_has(both: tuple[Any, Tokenizer]) -> None:
    """Its record, of the texts that it does not strip."""
    texts = (DATA / "phi-3.texts").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (DATA / "phi-3.ids").read_text().split("\n")
    assert len(texts) <= len(lines)
    for text, line in zip(texts, lines, strict=False):
        assert both[0].encode(text, add_special_tokens=False) == [int(i) for i in line.split()], text


PIECES = st.sampled_from([*TEXTS, "<|user|>", "<|end|>", "</s>", "<s>", " ", "\n", "é", "\u0301", "中", "\x00", "😀"])


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=8).map("".join))
def test_the_ids_of_random_texts(both: tuple[Any, Tokenizer], text: str) -> None:
    made, theirs = both
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert made.encode(text, add_special_tokens=False) == ids
    assert made.backend_tokenizer.decode(ids, skip_special_tokens=False) == theirs.decode(
        ids, skip_special_tokens=False
    )


def test_random_ids_are_decoded_alike(both: tuple[Any, Tokenizer]) -> None:
    made, theirs = both
    draw = random.Random(0)
    for _ in range(500):
        ids = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 12))]
        for skips in (True, False):
            assert made.backend_tokenizer.decode(ids, skip_special_tokens=skips) == theirs.decode(
                ids, skip_special_tokens=skips
            )


def conversations() -> Sequence[Conversation]:
    said = [Message("user", "Hi <|end|> there"), Message("assistant", "Hello"), Message("user", " again  ")]
    return [
        Conversation(tuple(said[:1])),
        Conversation(tuple(said)),
        Conversation((Message("system", "Be brief."), *said)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi-3-mini", "phi-3-medium"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_conversations_and_raw_prompts(name: str, adds_bos: bool, tmp_path: Path) -> None:
    """By ``Phi3Tokenizer``, over transformers' reading of the real files."""
    from transformers import AutoTokenizer, Phi3Config

    document, config = real(name)
    config["add_bos_token"] = adds_bos  # as in April 2024, when tokenizer.json had it too
    if adds_bos:
        bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        document["post_processor"]["single"].insert(0, bos)
        document["post_processor"]["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = Phi3Tokenizer(AutoTokenizer.from_pretrained(tmp_path, config=Phi3Config()))
    made = Phi3Tokenizer(make_tokenizer(metadata_of(document, config), Path("m.gguf"), vocab_size=VOCABULARY))
    raw = [RawPrompt(text, add_special_tokens=adds) for text in TEXTS for adds in (True, False)]
    prompts: list[Prompt] = [*conversations(), *raw]
    for prompt in prompts:
        assert made.encode(prompt) == theirs.encode(prompt), prompt
    assert made.control_ids == theirs.control_ids
    assert made.end_of_turn_ids == theirs.end_of_turn_ids
    assert made.drops_first_space == theirs.drops_first_space


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "gpt2"}, "m.gguf: tokenizer.ggml.model is 'gpt2'; only 'llama' is served, which Phi-3 has"),
        ({"tokenizer.ggml.tokens": None}, "m.gguf: tokenizer.ggml has 0 tokens, 32064 token_type and 32064 scores; it must have as many of each"),
        ({"tokenizer.ggml.tokens": ["a"] * VOCABULARY}, "m.gguf: tokenizer.ggml.tokens: control token <|user|> is missing; this tokenizer does not belong to this checkpoint"),
    ],
)  # fmt: skip
def test_another_tokenizer_is_refused(change: dict[str, Any], message: str) -> None:
    metadata = metadata_of(*real("phi-3-mini")) | change
    with pytest.raises(CheckpointError) as caught:
        make_tokenizer(metadata, Path("m.gguf"), vocab_size=VOCABULARY)
    assert caught.value.message == message


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"has token id 32010, but vocab_size in config\.json is 32000"):
        make_tokenizer(metadata_of(*real("phi-3-mini")), Path("m.gguf"), vocab_size=32000)
