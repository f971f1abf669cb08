"""lm-evaluation-harness: its client ``local-completions`` scores continuations as transformers does."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI


def check(url: str, expected: dict[str, Any]) -> None:
    """Score all pairs, with prompts as token ids and as texts, one by one and in batches; then generate."""
    pairs = [(one["context"], one["continuation"]) for one in expected["loglikelihoods"]]
    for settings in (
        {"tokenized_requests": True},
        {"tokenized_requests": True, "batch_size": 4},
        {"tokenized_requests": False},
        {"tokenized_requests": False, "batch_size": 4},
        {"tokenized_requests": True, "num_concurrent": 3},
    ):
        model = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions", model=expected["model"], tokenizer=expected["tokenizer"], **settings
        )
        asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        found = model.loglikelihood(asked)
        for (loglikelihood, is_greedy), one in zip(found, expected["loglikelihoods"], strict=True):
            assert math.isclose(loglikelihood, one["loglikelihood"], rel_tol=1e-3, abs_tol=1e-3), (settings, one, found)
            assert is_greedy == one["is_greedy"], (settings, one)
    model = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions", model=expected["model"], tokenizer=expected["tokenizer"], batch_size=2
    )
    arguments = [(context, {"max_gen_toks": 4, "until": ["\n"]}) for context, _ in pairs]
    texts = model.generate_until([Instance("generate_until", {}, one, n) for n, one in enumerate(arguments)])
    assert len(texts) == len(pairs)
    assert all(isinstance(text, str) for text in texts)


if __name__ == "__main__":
    check(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
