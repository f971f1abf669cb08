"""Parameters drawn together, sensible and senseless: an answer or a refusal that says why, never a 5xx.

``python -m tests.api.test_fuzz SECONDS [SEED]`` goes on for longer.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

NUM_CASES = 400


def _draws(draw: random.Random) -> dict[str, Callable[[], Any]]:
    """For every parameter a draw of a value: good ones, the edges of the range, and beyond."""

    def one_of(*values: Any) -> Callable[[], Any]:
        return lambda: draw.choice(values)

    def ids() -> list[int]:
        return [draw.randrange(704) for _ in range(draw.randint(1, 4))]

    def bias() -> list[Any]:
        return [[ids(), draw.choice([1.0, -5.0, 1e30])] for _ in range(draw.randint(1, 3))]

    return {
        "max_length": one_of(0, 1, 20, 200, 10**9),
        "min_length": one_of(0, 5, 10, 40),
        "max_new_tokens": one_of(0, 1, 3, 8, 15),
        "min_new_tokens": one_of(0, 2, 5),
        "do_sample": one_of(True, False, "perhaps"),
        "early_stopping": one_of(True, False, "never", "always"),
        "num_beams": one_of(0, 1, 2, 3, 4, 6, 10**9),
        "num_beam_groups": one_of(1, 2, 3),
        "diversity_penalty": one_of(0.0, 0.5, 1.0),
        "temperature": one_of(-1, 0, 1e-38, 1e-6, 0.5, 1, 2, 1e30),
        "top_k": one_of(-1, 0, 1, 10, 10.0, 50, 10**9),
        "top_p": one_of(-0.1, 0, 0.1, 0.9, 1, 1.5),
        "min_p": one_of(0, 0.1, 1),
        "typical_p": one_of(0, 0.1, 0.9, 1),
        "epsilon_cutoff": one_of(0, 0.01, 0.9),
        "eta_cutoff": one_of(0, 0.01, 0.9),
        "top_h": one_of(0.1, 0.5, 1),
        "repetition_penalty": one_of(0, 0.5, 1, 1.3, 1e30, 1e-30),
        "encoder_repetition_penalty": one_of(0.5, 1, 1.3),
        "presence_penalty": one_of(-3, -2, 0, 0.5, 2),
        "frequency_penalty": one_of(-2, 0, 0.5, 2, 1e30),
        "top_logprobs": one_of(0, 2, 20, 21),
        "prompt_logprobs": one_of(-1, 0, 2, 20, 21),
        "length_penalty": one_of(-32, -2, 0, 1, 2, 32),
        "no_repeat_ngram_size": one_of(0, 1, 2, 3, 100),
        "encoder_no_repeat_ngram_size": one_of(0, 1, 2, 3, 100),
        "bad_words_ids": lambda: [ids() for _ in range(draw.randint(0, 3))],
        "sequence_bias": bias,
        "suppress_tokens": ids,
        "begin_suppress_tokens": ids,
        "forced_bos_token_id": one_of(5, 703, 704),
        "forced_eos_token_id": one_of(5, [643, 5], 703),
        "exponential_decay_length_penalty": lambda: [draw.choice([0, 3, 100]), draw.choice([1.01, 2.0, 0.5])],
        "renormalize_logits": one_of(True, False),
        "remove_invalid_values": one_of(True, False),
        "guidance_scale": one_of(0, 1, 1.5, 5),
        "negative_prompt_ids": ids,
        "num_return_sequences": one_of(1, 2, 3),
        "output_scores": one_of(True, False),
        "return_dict_in_generate": one_of(True, False),
        "pad_token_id": one_of(0, 5),
        "bos_token_id": one_of(1),
        "eos_token_id": one_of(5, [5, 6], 643, 703, []),
        "stop_strings": one_of("a", ["the", "x"], [], ""),
        "max_time": one_of(0.001, 5),
        "prompt_lookup_num_tokens": one_of(1, 3),
        "seed": one_of(-1, 0, 1, 2**62, 2**70),
        "stop_token_ids": one_of([], [5], [5, 703], [704]),
        "ignore_eos": one_of(True, False),
        "allowed_token_ids": one_of([], [5], [5, 6, 7], [643], list(range(704)), [704]),
        "bad_words": one_of([], ["the"], [" a", "the knight", "x"], [""], [" "]),
        "stop": one_of("a", ["the", "x"], [], ""),
        "include_stop_str_in_output": one_of(True, False),
        "skip_special_tokens": one_of(True, False),
        "spaces_between_special_tokens": one_of(True, False),
        "truncate_prompt_tokens": one_of(-2, -1, 0, 1, 5, 10**9),
        "truncation_side": one_of("left", "right", "both"),
        "repeat_last_n": one_of(-2, -1, 0, 1, 64, 10**9),
        "json_schema": one_of(True, {}, {"type": "boolean"}, '{"type": "null"}', {"not": {}}, "{", 5, {"enum": []}),
        "regex": one_of("[a-c]{1,9}", "(", "", "a*", 5),
        "choice": one_of(["yes", "no"], [], [""], [" a"]),
        "grammar": one_of('start: "a" | "b" start', 'root ::= "a"', "root ::= b", "", "x"),
    }


def _other_draws(draw: random.Random) -> dict[str, Callable[[], Any]]:
    """The same for the names of other servers."""

    def one_of(*values: Any) -> Callable[[], Any]:
        return lambda: draw.choice(values)

    return {
        "max_tokens": one_of(-1, 0, 1, 5, "x"),
        "max_completion_tokens": one_of(-1, 1, 5),
        "n_predict": one_of(-2, -1, 0, 5),
        "num_predict": one_of(-2, -1, 0, 5),
        "max_output_tokens": one_of(-1, 0, 1, 5),
        "num_ctx": one_of(0, 10, 40, 10**9),
        "stop_sequences": one_of("a", ["the", "x"], [], ""),
        "min_tokens": one_of(-1, 0, 2),
        "no_stop_trim": one_of(True, False),
        "n": one_of(0, 1, 2, 65),
        "logit_bias": one_of({}, {"5": 1}, {"5": 100, "6": -100}, {"x": 1}, {"704": 1}, [5]),
        "repeat_penalty": one_of(0, 1.0, 1.3),
        "use_beam_search": one_of(True, False, 1),
        "top_k": one_of(-1, 0, 10),
        "seed": one_of(-1, 7),
        "response_format": one_of(
            {"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": 1}, "json"
        ),
        "structured_outputs": one_of({}, {"regex": "a+"}, {"json": {}, "regex": "a"}, {"choice": []}, [], {"x": 1}),
        "guided_json": one_of(True, {"type": "boolean"}, "x"),
        "guided_regex": one_of("[a-c]{1,9}", ""),
        "guided_grammar": one_of('start: "a"', "x"),
        "ebnf": one_of("", 'root ::= "a"'),
        "regex": one_of("", "a"),
        "grammar": one_of("", 'start: "a"'),
        "guided_choice": one_of(["yes", "no"], "yes"),
        "format": one_of("", "json", {"type": "integer"}, "xml"),
    }


Request = tuple[str, dict[str, Any]]  # path and body


def requests(seed: int) -> Iterator[Request]:
    """Parameters in generate_kwargs, beside the prompt, or in both."""
    draw = random.Random(seed)
    draws, others = _draws(draw), _other_draws(draw)
    while True:
        names = draw.sample(list(draws), draw.choice([1, 2, 3, 5]))
        drawn = {"max_new_tokens": draw.choice([1, 4, 8])} | {name: draws[name]() for name in names}
        if draw.random() < 0.3:
            name = draw.choice(list(others))
            drawn[name] = others[name]()
        places = {name: draw.choice(["kwargs", "kwargs", "body", "both"]) for name in drawn}
        prompt = draw.choice(["<|user|> hi<|end|><|assistant|>", "the knight the knight the", "x"])
        body: dict[str, Any] = {"prompt": prompt, "stream": draw.random() < 0.2}
        body |= {name: value for name, value in drawn.items() if places[name] != "kwargs"}
        kwargs = {name: value for name, value in drawn.items() if places[name] != "body"}
        path = draw.choice(["/chat", "/chat", "/v1/completions"])
        yield path, {**body, "model": "tested", **({"generate_kwargs": kwargs} if kwargs else {})}


def status(client: TestClient, request: Request) -> int:
    path, body = request
    response = client.post(path, json=body)
    told = (response.text, path, json.dumps(body))
    assert response.status_code in (200, 400, 422), told
    assert "event: error" not in response.text, told
    assert not response.text.startswith('data: {"error"'), told
    if response.status_code != 200:
        assert response.json()["detail"] if path == "/chat" else response.json()["error"]["message"], told
    return response.status_code


def test_every_parameter_is_drawn() -> None:
    from phi3_serve.api.other_names import OTHER_NAMES
    from phi3_serve.parameters import NAMES

    assert set(_draws(random.Random(0))) == set(NAMES)
    assert set(_other_draws(random.Random(0))) == set(OTHER_NAMES)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(4))
def test_combinations_are_answered_or_refused(client: TestClient, seed: int) -> None:
    drawn = requests(seed)
    counts = Counter(status(client, next(drawn)) for _ in range(NUM_CASES // 4))
    assert counts[200] > NUM_CASES / 4 / 3
    assert counts[400] + counts[422] > 0


def main(seconds: float, seed: int) -> None:
    import tempfile
    from pathlib import Path

    from phi3_serve.api.app import create_app
    from phi3_serve.config.app import AppConfig
    from tests.random_checkpoint import Shape, make
    from tests.support import LocalBackend, local_replica

    with tempfile.TemporaryDirectory() as directory:
        make(Path(directory), Shape(num_layers=3), seed=7)
        model = {"name": "tested", "source": directory, "device": "cpu"}
        replica = local_replica("tested", directory)
        client = TestClient(create_app(LocalBackend(replica), AppConfig.model_validate({"models": [model]})))
        counts: Counter[int] = Counter()
        end = time.monotonic() + seconds
        for request in requests(seed):
            counts[status(client, request)] += 1
            print(f"\r{counts.total()} requests: {dict(sorted(counts.items()))}", end="", file=sys.stderr)
            if time.monotonic() > end:
                return


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
