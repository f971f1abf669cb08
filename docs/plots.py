"""The plots of docs/benchmarks.md: ``make plots`` reads docs/data/*.json and writes docs/images/*.svg.

Each data file holds a date, the hardware, the command, and the JSON that the command printed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phi3_serve.bar_chart import Bar, Curves, Panel, drawn
from phi3_serve.bench import plots

HERE = Path(__file__).parent


def main() -> None:
    """Write a plot for each data file."""
    for data in (HERE / "data").glob("*.json"):
        (HERE / "images" / f"{data.stem}.svg").write_text(plot(data.stem))


def plot(name: str) -> str:
    """The SVG of ``docs/data/NAME.json``."""
    data = json.loads((HERE / "data" / f"{name}.json").read_text())
    return drawn(PLOTS[name](data["report"]), f"{data['command']} · {data['hardware']} · {data['date']}")


def gpu(report: Any) -> list[Panel]:
    """The tables of ``make gpu``: the share of the card's limit that decode and prefill reach."""
    panels = []
    for phase in ("decode", "prefill"):
        for card in sorted({line["card"] for line in report["lines"]}):
            lines = [line for line in report["lines"] if (line["phase"], line["card"]) == (phase, card)]
            bars = (
                Bar(f"{line['shape']}, {line['requests']} x {line['tokens']:,} tokens", line["percent_of_limit"])
                for line in lines
            )
            panels.append(Panel(f"{phase.capitalize()} on an {card}, % of the card's limit", tuple(bars), 100))
    return panels


def quantization(report: Any) -> list[Panel]:
    """Speed and error of weights in 8 and 4 bits."""
    lines = report["lines"]
    panels = [
        Panel(
            f"Tokens per second of one core, {count} request{'s at once' if count > 1 else ''}",
            tuple(
                Bar(line["weights"], 1000 * count / line["step_ms"][str(count)], line["ours"])
                for line in lines
                if "step_ms" in line
            ),
        )
        for count in (1, 8, 16)
    ]
    errors = (Bar(line["weights"], 1e6 * line["divergence"], line["ours"]) for line in lines if "divergence" in line)
    return [*panels, Panel("Divergence from the weights as stored, millionths of a nat for each token", tuple(errors))]


PLOTS: Mapping[str, Callable[[Any], Sequence[Panel | Curves]]] = {
    "engine": plots.engine,
    "http": plots.http,
    "overload": plots.overload,
    "gpu": gpu,
    "quantization": quantization,
    "scaling": plots.scaling,
}
"""The panels of each plot, by the name of its data file."""

if __name__ == "__main__":
    main()
