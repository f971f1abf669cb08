"""The mean of two related checkpoints: ``python -m training.average ONE OTHER OUT``.

The mean of two trainings from the same weights is often better than each of them (model soups, Wortsman et al. 2022,
https://arxiv.org/abs/2203.05482). The same holds for the mean of a checkpoint and a further training of it (WiSE-FT,
Wortsman et al. 2022, https://arxiv.org/abs/2109.01903). The script examines the mean and writes its model card.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from training import card
from training import model as tiny_model
from training.curriculum import LESSONS
from training.exam import Examinee, as_table, examine

console = Console()


def main(
    one: Annotated[Path, typer.Argument(help="A checkpoint written by a training with --start.")],
    other: Annotated[
        Path, typer.Argument(help="Another checkpoint with the same --start, or a further training of ONE.")
    ],
    out: Annotated[Path, typer.Argument(help="The directory of the mean.")],
) -> None:
    """Write the mean of two checkpoints and examine it."""
    trained = joined(card.stages_of(one), card.stages_of(other))
    tokenizer, model = mean(one, other)
    tiny_model.write(model, tokenizer, out)
    shutil.copy(other / card.LOSS_PLOT, out)
    examinee = Examinee(out)
    marks = list(track(examine(examinee), "Examining", total=len(LESSONS), console=console))
    card.write(out, trained, card.text(trained, model.num_parameters(), marks, card.ask(examinee)))
    examinee.close()
    console.print(as_table(marks, mistakes=1))


def joined(one: Sequence[card.Stage], other: Sequence[card.Stage]) -> list[card.Stage]:
    """The trainings behind the mean of two checkpoints, given the trainings of each.

    Raises:
        typer.BadParameter: the checkpoints are not related.
    """
    if one[:-1] == other[:-1]:
        return [*one, replace(other[-1], beside=True)]
    if one == other[: len(one)]:
        return [*other[:-1], replace(other[-1], mean_with=len(one))]
    raise typer.BadParameter("the checkpoints did not go on from the same weights, nor the second from the first")


def mean(one: Path, other: Path) -> tuple[Tokenizer, Any]:
    """The shared vocabulary and the mean of both models in float32."""
    tokenizer, model = tiny_model.begun(0, str(one))
    _, second = tiny_model.begun(0, str(other))
    with torch.no_grad():
        for mine, its in zip(model.parameters(), second.parameters(), strict=True):
            mine.lerp_(its, 0.5)
    return tokenizer, model


if __name__ == "__main__":
    typer.run(main)
