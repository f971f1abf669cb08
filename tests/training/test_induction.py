"""The untrained model copies; the same model without the circuit does not."""

import pytest
import torch
from tokenizers import Tokenizer

from training import model as tiny_model


@pytest.mark.slow
@torch.inference_mode()
def test_a_new_model_goes_on_with_what_it_has_seen_before() -> None:
    tokenizer: Tokenizer = tiny_model.learn_vocabulary(0)
    model = tiny_model.new_model(tokenizer, seed=3)
    words = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:40] + 300
    ids = torch.cat([words, words])[None]
    guessed = model(ids).logits[0, 40:-1].argmax(-1)
    assert (guessed == ids[0, 41:]).float().mean() > 0.9
    first_time = model(ids).logits[0, :39].argmax(-1)
    assert (first_time == ids[0, 1:40]).float().mean() < 0.1
