"""What fewer bits cost: phi-3-tiny with rounded weights, or with rounded keys and values, against itself.

``python -m training.quality`` prints the perplexity of held-out answers, the divergence of the probabilities from those
of the weights as stored, how often the likeliest token is the same, and the share of right answers in the exam. The
activations are float32, but for one line, which shows what bfloat16 costs. ``--checkpoint`` adds a checkpoint of the
same model, for example a GGUF file. ``--context`` joins the dialogues to long texts, which phi-3-tiny was never taught.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import kl_div

from phi3_serve.catalogue import EMBEDDED_TINY, NO_QUANTIZATION, QUANTIZATIONS
from phi3_serve.engine.kernels.kv_cache import EIGHT_BITS, KvCacheDtype
from phi3_serve.engine.loaded_model import LoadedModel
from training.curriculum import LESSONS
from training.dialogue import Draw
from training.encoding import DialogueEncoder, Encoded
from training.exam import Examinee, examine
from training.modules import load_with_modules, rounded_cache

SEED = 2026
DIALOGUES_PER_KIND = 40
QUESTIONS_PER_KIND = 300


@dataclass(frozen=True, slots=True)
class Form:
    """A form of phi-3-tiny."""

    name: str
    quantization: str = NO_QUANTIZATION
    source: Path = EMBEDDED_TINY
    dtype: str = "float32"  # of the activations
    kv_cache_dtype: KvCacheDtype = "auto"

    def load(self) -> LoadedModel:
        """The model."""
        return load_with_modules(self.source, dtype=self.dtype, quantization=self.quantization)


STORED = Form("none")
IN_BFLOAT16 = Form("none, computed in bfloat16", dtype="bfloat16")
OF_CACHES = tuple(Form(f"none, key-value cache in {name}", kv_cache_dtype=name) for name in EIGHT_BITS)
FORMS = (STORED, IN_BFLOAT16, *(Form(name, name) for name in QUANTIZATIONS if name != NO_QUANTIZATION), *OF_CACHES)


@dataclass(frozen=True, slots=True)
class Quality:
    """What a form of the weights makes of a model."""

    name: str
    weights_error: float  # root of the mean square of the error, over that of the weights
    perplexity: float  # of held-out answers
    divergence: float  # Kullback-Leibler, from the weights as stored, nats a token; mean over the same tokens
    largest_divergence: float  # of one token
    same_likeliest: float  # share of tokens whose likeliest one is the same
    right: float | None  # share of right answers in the exam


def held_out(dialogues_per_kind: int) -> list[Encoded]:
    """Dialogues of the exam with their answers."""
    draw = Draw(Random(SEED), exam=True)  # noqa: S311 (not a secret)
    encoder = DialogueEncoder(Tokenizer.from_file(str(EMBEDDED_TINY / "tokenizer.json")))
    return [encoder.encode(lesson.dialogue(draw)) for lesson in LESSONS for _ in range(dialogues_per_kind)]


def joined(dialogues: Sequence[Encoded], context: int) -> list[Encoded]:
    """Texts of at most ``context`` tokens that have ``dialogues`` one after another, in any order.

    Only answers in the second half of a text are learned. Dialogues that fill no text are left out.
    """
    texts: list[Encoded] = []
    text = Encoded([], [])
    for dialogue in Random(SEED).sample(dialogues, len(dialogues)):  # noqa: S311 (not a secret)
        if len(text.ids) + len(dialogue.ids) > context:
            texts.append(text)
            text = Encoded([], [])
        is_behind = len(text.ids) >= context // 2
        text.ids.extend(dialogue.ids)
        text.learned.extend(learned and is_behind for learned in dialogue.learned)
    return texts


@torch.inference_mode()
def log_probabilities(
    loaded: LoadedModel, dialogues: Sequence[Encoded], kv_cache_dtype: KvCacheDtype = "auto"
) -> Iterator[tuple[Tensor, Tensor]]:
    """For the learned tokens of each dialogue, [tokens, vocabulary], and the tokens themselves, [tokens]."""
    for dialogue in dialogues:
        ids, learned = torch.tensor(dialogue.ids), torch.tensor(dialogue.learned)
        with rounded_cache(kv_cache_dtype):
            logits: Tensor = loaded.model(ids[None]).logits[0]
        yield logits[:-1][learned[1:]].float().log_softmax(-1), ids[1:][learned[1:]]


def measure(
    form: Form, stored: Sequence[tuple[Tensor, Tensor]], dialogues: Sequence[Encoded], *, right: float | None
) -> Quality:
    """The quality of ``form``; ``stored`` has the log-probabilities of the weights as they are stored."""
    loaded = form.load()
    loss, divergence, largest, same, count = 0.0, 0.0, 0.0, 0, 0
    for (expected, ids), (found, _) in zip(
        stored, log_probabilities(loaded, dialogues, form.kv_cache_dtype), strict=True
    ):
        loss -= float(found.gather(1, ids[:, None]).sum())
        of_tokens = kl_div(found, expected, reduction="none", log_target=True).sum(-1)
        divergence += float(of_tokens.sum())
        largest = max(largest, float(of_tokens.max()))
        same += int((found.argmax(-1) == expected.argmax(-1)).sum())
        count += len(ids)
    return Quality(
        form.name,
        weights_error=_weights_error(loaded.model),
        perplexity=math.exp(loss / count),
        divergence=divergence / count,
        largest_divergence=largest,
        same_likeliest=same / count,
        right=right,
    )


@torch.inference_mode()
def _weights_error(model: Any) -> float:
    whole = STORED.load().model
    error = square = 0.0
    for name, weight in whole.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if hasattr(module, "dequantized"):
            error += float((module.dequantized() - weight).square().sum())
            square += float(weight.square().sum())
    return math.sqrt(error / square) if square else 0.0


def _exam(form: Form, questions_per_kind: int) -> float | None:
    """The share of right answers; None for what a CPU does not have, or few CPUs have."""
    if form == IN_BFLOAT16 or form.kv_cache_dtype == "fp8":
        return None
    examinee = Examinee(form.source, form.quantization, form.kv_cache_dtype)
    marks = list(examine(examinee, questions_per_kind))
    examinee.close()
    return sum(mark.right for mark in marks) / sum(mark.questions for mark in marks)


def as_table(qualities: Sequence[Quality]) -> Table:
    """One line for each form."""
    table = Table("weights", "error", "perplexity", "KL", "largest KL", "same likeliest", "exam")
    for q in qualities:
        table.add_row(
            q.name,
            f"{q.weights_error:.2%}",
            f"{q.perplexity:.4f}",
            f"{q.divergence:.2e}",
            f"{q.largest_divergence:.2e}",
            f"{q.same_likeliest:.2%}",
            "" if q.right is None else f"{q.right:.1%}",
        )
    return table


def main(
    dialogues: Annotated[int, typer.Option(help="Dialogues of each kind.", min=1)] = DIALOGUES_PER_KIND,
    questions: Annotated[int, typer.Option(help="Questions of each kind in the exam.", min=1)] = QUESTIONS_PER_KIND,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A directory or GGUF file with phi-3-tiny; may be repeated.", exists=True)
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=512, help="Join the dialogues to texts of so many tokens, and compare caches only."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare phi-3-tiny in each quantization with its weights as they are stored."""
    drawn = held_out(dialogues) if context is None else joined(held_out(dialogues), context)
    stored = list(log_probabilities(STORED.load(), drawn))
    of_phi_3_tiny = FORMS if context is None else (STORED, *OF_CACHES)
    forms = (*of_phi_3_tiny, *(Form(path.name, source=path) for path in checkpoint or ()))
    qualities = [
        measure(form, stored, drawn, right=None if context else _exam(form, questions))
        for form in track(forms, "Measuring", console=Console(stderr=True))
    ]
    if as_json:
        print(json.dumps([asdict(quality) for quality in qualities], indent=1))
    else:
        Console().print(as_table(qualities))


if __name__ == "__main__":
    typer.run(main)
