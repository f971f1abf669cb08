"""The mean of two checkpoints that went on from the same one: ``python -m phi3_serve.tiny.average ONE OTHER OUT``.

Trainings that begin with the same weights end in the same valley, and the mean of their ends is often better than
either end (model soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482). It is examined, and gets a model card.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from phi3_serve.tiny import card
from phi3_serve.tiny import model as tiny_model
from phi3_serve.tiny.curriculum import LESSONS
from phi3_serve.tiny.exam import Examinee, as_table, examine

console = Console()


def main(
    one: Annotated[Path, typer.Argument(help="A checkpoint that a training with --start wrote.")],
    other: Annotated[Path, typer.Argument(help="Another, of a training with the same --start.")],
    out: Annotated[Path, typer.Argument(help="Where their mean goes.")],
) -> None:
    """Write the mean of two checkpoints, and examine it."""
    before, theirs = card.stages_of(one), card.stages_of(other)
    if before[:-1] != theirs[:-1]:
        raise typer.BadParameter(f"{one} and {other} did not go on from the same checkpoint")
    tokenizer, model = mean(one, other)
    tiny_model.write(model, tokenizer, out)
    shutil.copy(other / card.LOSS_PLOT, out)
    examinee = Examinee(out)
    marks = list(track(examine(examinee), "Examining", total=len(LESSONS), console=console))
    trained = [*before, replace(theirs[-1], beside=True)]
    card.write(out, trained, card.text(trained, model.num_parameters(), marks, card.ask(examinee)))
    examinee.close()
    console.print(as_table(marks, mistakes=1))


def mean(one: Path, other: Path) -> tuple[Tokenizer, Any]:
    """The vocabulary that both have, and the model between them, in float32."""
    tokenizer, model = tiny_model.begun(0, str(one))
    _, second = tiny_model.begun(0, str(other))
    with torch.no_grad():
        for mine, its in zip(model.parameters(), second.parameters(), strict=True):
            mine.lerp_(its, 0.5)
    return tokenizer, model


if __name__ == "__main__":
    typer.run(main)
