"""Records what transformers 4.55, the last with group beam search in core, answers. Run once, in its own venv:

    python -m venv /tmp/v455 && /tmp/v455/bin/pip install torch==2.13.0 transformers==4.55.4
    python tests/oracle/record_group_beams.py checkpoint /tmp/group-beams     (with the project's own venv)
    /tmp/v455/bin/python tests/oracle/record_group_beams.py record /tmp/group-beams

It writes group_beams_4_55.json beside itself: per case the parameters and the token ids of every sequence, prompt
excluded, as generate() returned them. The checkpoint is not kept; its hash is, and the test makes it again.

The search is 4.55's; what a logits processor means is transformers 5's. Two processors that version 5 has mended are
given its mends before recording: with beams, encoder_repetition_penalty acted on the first beam alone, and
exponential_decay_length_penalty made nan of an end-of-sequence token that another processor had banned.
"""

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "group_beams_4_55.json"
NUM_CASES = 120
SEED = 20261123


def write_checkpoint(directory: Path) -> None:
    from tests.random_checkpoint import Shape, make

    make(directory, Shape(num_layers=3), seed=7)


def weights_hash(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def cases() -> list[dict[str, Any]]:
    """Prompts and parameters: every one alone, then drawn together."""
    draw = random.Random(SEED)
    choices: dict[str, list[Any]] = {
        "length_penalty": [-1.0, 0.0, 0.5, 2.0],
        "early_stopping": [True, False, "never"],
        "repetition_penalty": [1.2],
        "encoder_repetition_penalty": [1.3],
        "no_repeat_ngram_size": [2],
        "encoder_no_repeat_ngram_size": [2],
        "bad_words_ids": [[[5], [418, 96]]],
        "suppress_tokens": [[10, 11, 12]],
        "begin_suppress_tokens": [[274, 418]],
        "sequence_bias": [[[[418], 4.0], [[5, 6], -3.0]]],
        "forced_eos_token_id": [643],
        "exponential_decay_length_penalty": [[3, 1.4]],
        "min_new_tokens": [4],
        "renormalize_logits": [True],
        "eos_token_id": [[643, 644, 650], list(range(300, 420)), 418],
    }
    found = []
    for number in range(NUM_CASES):
        num_groups = draw.choice([2, 3, 4])
        parameters: dict[str, Any] = {
            "num_beam_groups": num_groups,
            "num_beams": num_groups * draw.choice([1, 2, 3]),
            "diversity_penalty": draw.choice([0.1, 0.5, 1.0, 5.0]),
            "max_new_tokens": draw.choice([1, 5, 12, 20]),
        }
        parameters["num_return_sequences"] = draw.randint(1, parameters["num_beams"])
        names = [list(choices)[number % len(choices)]] if number < 3 * len(choices) else draw.sample(list(choices), 4)
        parameters |= {name: draw.choice(choices[name]) for name in names}
        if parameters.get("min_new_tokens", 0) > parameters["max_new_tokens"]:
            del parameters["min_new_tokens"]
        prompt = [draw.randrange(260, 640) for _ in range(draw.randint(1, 12))]
        found.append({"prompt": prompt, "parameters": parameters})
    return found


def mend_processors() -> None:
    """The mends of transformers 5.23, generation/logits_process.py."""
    from transformers.generation import logits_process

    repetition = logits_process.EncoderRepetitionPenaltyLogitsProcessor
    decay = logits_process.ExponentialDecayLengthPenalty
    penalise, decayed = repetition.__call__, decay.__call__

    def for_every_beam(self: Any, input_ids: Any, scores: Any) -> Any:
        self.encoder_input_ids = self.encoder_input_ids[:1].expand(scores.shape[0], -1)
        return penalise(self, input_ids, scores)

    def without_nan(self: Any, input_ids: Any, scores: Any) -> Any:
        found = decayed(self, input_ids, scores)
        return found.where(scores.isfinite(), scores)

    repetition.__call__ = for_every_beam  # type: ignore[method-assign]
    decay.__call__ = without_nan  # type: ignore[method-assign]


def record(directory: Path) -> None:
    import torch
    import transformers

    assert transformers.__version__.startswith("4.55."), transformers.__version__
    mend_processors()
    model: Any = transformers.Phi3ForCausalLM.from_pretrained(directory, torch_dtype=torch.float32)
    rows = []
    for number, case in enumerate(cases()):
        prompt = torch.tensor([case["prompt"]])
        parameters = dict(case["parameters"])
        if "exponential_decay_length_penalty" in parameters:
            parameters["exponential_decay_length_penalty"] = tuple(parameters["exponential_decay_length_penalty"])
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **parameters)
        rows.append({**case, "answers": output[:, len(case["prompt"]) :].tolist()})
        print(f"\r{number + 1} of {NUM_CASES}", end="", file=sys.stderr)
    content = {"transformers": transformers.__version__, "weights_sha256": weights_hash(directory), "cases": rows}
    RECORD.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    {"checkpoint": write_checkpoint, "record": record}[sys.argv[1]](Path(sys.argv[2]))
