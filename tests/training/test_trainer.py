"""Encoding and learning: the ids are those that a server makes, and a training that was cut off goes on alike."""

from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.core.prompt import Conversation, Message
from phi3_serve.text.tokenizer import Phi3Tokenizer
from training import model as tiny_model
from training import tokenizer as tiny_tokenizer
from training import trainer as training
from training.curriculum import dialogues
from training.dialogue import Exchange, dialogue, letters, plain
from training.encoding import DialogueEncoder
from training.trainer import Journal, Trainer, by_length, padded, rate


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    """That of the embedded model. To learn one takes four seconds."""
    return Tokenizer.from_file(str(EMBEDDED_TINY / "tokenizer.json"))


def test_prompts_are_encoded_as_a_server_encodes_them(vocabulary: Tokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save(vocabulary, tmp_path, 2048)
    (tmp_path / "config.json").write_text('{"model_type": "phi3"}')
    server = Phi3Tokenizer(AutoTokenizer.from_pretrained(tmp_path))
    supply, encoder = dialogues(Random(5)), DialogueEncoder(vocabulary)
    for _ in range(500):
        drawn = next(supply)
        encoded = encoder.encode(drawn)
        prompt = server.encode(Conversation(tuple(Message(t.role, plain(t.content)) for t in drawn.turns[:-1])))
        assert encoded.ids[: len(prompt)] == prompt
        assert not encoded.learned[len(prompt) - 1]
        assert all(encoded.learned[len(prompt) :])
        assert encoded.ids[-1] == vocabulary.token_to_id("<|end|>")


def test_letters_are_encoded_one_by_one_and_read_the_same(vocabulary: Tokenizer) -> None:
    drawn = dialogue(Exchange("Reverse castle", f"castle backwards is {letters('eltsac')}."))
    ids = DialogueEncoder(vocabulary).encode(drawn).ids
    answer = ids[ids.index(vocabulary.get_vocab()["<|assistant|>"]) + 1 : -1]
    assert [vocabulary.id_to_token(i) for i in answer[-7:]] == [*"eltsac", "."]
    assert vocabulary.decode(answer) == "castle backwards is eltsac."


@pytest.mark.thorough
def test_every_digit_and_mark_is_a_token() -> None:
    vocabulary = tiny_model.learn_vocabulary(0)
    assert not [
        t
        for t in vocabulary.get_vocab(with_added_tokens=False)
        if len(t.strip("▁")) > 1 and any(c.isdigit() for c in t) and "<0x" not in t
    ]
    assert vocabulary.encode("12+30?").tokens == ["▁", "1", "2", "+", "3", "0", "?"]


def test_only_what_is_learned_has_a_target(vocabulary: Tokenizer) -> None:
    encoder, supply = DialogueEncoder(vocabulary), dialogues(Random(6))
    encoded = [encoder.encode(next(supply)) for _ in range(300)]
    groups = list(by_length(encoded))
    assert sum(map(len, groups)) == 300
    for group in groups:
        ids, targets = padded(group, 7)
        assert ids.numel() <= training.TOKENS_PER_BATCH
        assert int((targets >= 0).sum()) == sum(sum(e.learned) for e in group)
        for row, e in enumerate(group):
            shown = [t for t in targets[row].tolist() if t >= 0]
            assert shown == [i for i, learned in zip(e.ids, e.learned, strict=True) if learned]


def test_the_rate_goes_up_stays_and_goes_down() -> None:
    assert [rate(share) for share in (0.0, 0.0025, 0.005, 0.4, 0.55, 1.0, 1.1)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    )


@pytest.mark.slow
def test_a_training_that_was_cut_off_goes_on_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "DIALOGUES_PER_ROUND", 8)  # Muon is slow on a CPU without bfloat16
    for size, value in {"NUM_LAYERS": 2, "HIDDEN_SIZE": 64, "NUM_HEADS": 2, "INTERMEDIATE_SIZE": 96}.items():
        monkeypatch.setattr(tiny_model, size, value)
    monkeypatch.setattr(tiny_model, "write_induction_circuit", lambda model: None)  # it needs the full width

    def rounds(trainer: Trainer, number: int) -> Trainer:
        for _ in range(number):
            list(trainer.round())
        return trainer

    cpu = torch.device("cpu")
    whole = rounds(Trainer(Journal(seed=1, rounds=4), cpu), 4)
    first = rounds(Trainer(Journal(seed=1, rounds=4), cpu), 2)
    first.save(tmp_path / "state.pt")
    second = Trainer(Journal(seed=1, rounds=4), cpu)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    rounds(second, 2)
    assert second.journal.losses == whole.journal.losses
    assert (second.journal.done, second.journal.tokens) == (4, whole.journal.tokens)
    for one, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert sum(whole.journal.losses[-2:]) < sum(whole.journal.losses[:2])
