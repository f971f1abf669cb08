"""Train phi-3-tiny: ``python -m training.train``. Two CPU cores take an hour and a half.

Goes on where an earlier run was cut off. Ends with the exam, and writes the checkpoint with its model card.
"""

from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track

from phi3_serve.catalogue import EMBEDDED_TINY
from training import card
from training import model as tiny_model
from training.curriculum import LESSONS
from training.exam import Examinee, as_table, examine
from training.trainer import Journal, Trainer

ROUNDS = 522
SEED = 4
console = Console()


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Where the checkpoint goes.")] = EMBEDDED_TINY,
    work: Annotated[Path, typer.Option(help="Where the state of the training is kept.")] = Path("build/tiny"),
    rounds: Annotated[int, typer.Option(help="Rounds of 2,560 dialogues.", min=1)] = ROUNDS,
    seed: Annotated[int, typer.Option(help="Another seed, another model.")] = SEED,
    start: Annotated[
        Path | None, typer.Option(help="A checkpoint to go on from, after lessons were mended; takes 150 rounds.")
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Compile the model first; needs a C++ compiler.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train phi-3-tiny from its first dialogue, or go on with a training that was cut off."""
    work.mkdir(parents=True, exist_ok=True)
    journal = Journal(seed, rounds, str(start or ""))
    trainer = begin(work / "state.pt", Trainer(journal, torch.device(device), compiled=compiled))
    learn(trainer, work)
    tiny_model.write(trainer.model, trainer.tokenizer, checkpoint)
    plot(trainer.journal, checkpoint / card.LOSS_PLOT)
    console.print(f"{checkpoint}: written")
    examinee = Examinee(checkpoint)
    marks = list(track(examine(examinee), "Examining", total=len(LESSONS), console=console))
    trained = card.stages(start, trainer.journal)
    card.write(checkpoint, trained, card.text(trained, trainer.model.num_parameters(), marks, card.ask(examinee)))
    examinee.close()
    console.print(as_table(marks, mistakes=1))


def begin(state: Path, trainer: Trainer) -> Trainer:
    """``trainer``, at the round where ``state`` left it."""
    if state.exists():
        saved = torch.load(state, map_location=trainer.device, weights_only=True)
        wanted = {name: getattr(trainer.journal, name) for name in ("seed", "rounds", "start")}
        if any(saved["journal"][name] != value for name, value in wanted.items()):
            raise typer.BadParameter(f"{state} is of another seed, length or start; remove it, or give another --work")
        trainer.restore(saved)
        console.print(f"going on after round {trainer.journal.done}")
    return trainer


def learn(trainer: Trainer, work: Path) -> None:
    """All rounds that are left, with a progress bar; the state and the plot of the loss are written as it goes."""
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:.1f} %, {task.fields[what]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    journal = trainer.journal
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=journal.rounds, completed=journal.done, what="")
        while journal.done < journal.rounds:
            for done in trainer.round():
                progress.update(bar, completed=done, what=f"loss {fmean(journal.losses[-30:]):.4f}")
            trainer.save(work / "state.pt")
            plot(journal, work / "loss.png")


def plot(journal: Journal, path: Path) -> None:
    """The loss so far, smoothed, over the tokens seen."""
    import matplotlib  # an extra of its own: only training needs it

    matplotlib.use("agg")
    from matplotlib import pyplot

    window = 50
    smooth = [fmean(journal.losses[max(0, i - window) : i + 1]) for i in range(len(journal.losses))]
    per_batch = journal.tokens / len(smooth) / 1e6
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot([i * per_batch for i in range(len(smooth))], smooth, linewidth=1)
    axes.set(xlabel="million tokens seen", ylabel="loss, nats per learned token", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
