"""Train phi-3-tiny: ``python -m training.train``. A training takes an hour and a half on two CPU cores.

An interrupted run continues at its last round. The script writes the checkpoint, runs the exam, and writes the card.
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
    checkpoint: Annotated[Path, typer.Argument(help="The directory of the checkpoint.")] = EMBEDDED_TINY,
    work: Annotated[Path, typer.Option(help="The directory of the training state.")] = Path("build/tiny"),
    rounds: Annotated[int, typer.Option(help="Rounds of 2,560 dialogues.", min=1)] = ROUNDS,
    seed: Annotated[int, typer.Option(help="The seed of weights and dialogues.")] = SEED,
    start: Annotated[
        Path | None, typer.Option(help="A checkpoint to continue from after a change of lessons, for 150 rounds.")
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Compile the model; needs a C++ compiler.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train phi-3-tiny, or continue an interrupted training."""
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
    """``trainer``, restored from the file ``state`` if the file exists."""
    if state.exists():
        saved = torch.load(state, map_location=trainer.device, weights_only=True)
        wanted = {name: getattr(trainer.journal, name) for name in ("seed", "rounds", "start")}
        if any(saved["journal"][name] != value for name, value in wanted.items()):
            raise typer.BadParameter(f"{state} has another seed, length or start; remove it or choose another --work")
        trainer.restore(saved)
        console.print(f"continuing after round {trainer.journal.done}")
    return trainer


def learn(trainer: Trainer, work: Path) -> None:
    """Run the remaining rounds with a progress bar; save the state and the loss plot after each round."""
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
    """Plot the smoothed loss over the tokens seen."""
    import matplotlib  # only in the extra `train`

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
