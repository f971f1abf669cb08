"""The plots of docs/benchmarks.md: ``make plots`` reads docs/data/*.json and writes docs/images/*.svg.

Each data file holds a date, the hardware, the command, and the JSON that the command printed. No library is needed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS, PEER = "#0f6b5c", "#9aa0aa"
LABEL_WIDTH, BAR_WIDTH, VALUE_WIDTH = 230, 400, 90  # pixels
ROW_HEIGHT, TITLE_HEIGHT, FOOT_HEIGHT, MARGIN = 24, 34, 24, 14
FONT = "font-family='system-ui, sans-serif' font-size='13'"


@dataclass(frozen=True, slots=True)
class Bar:
    """One value with its label."""

    label: str
    value: float
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars that share one scale."""

    title: str
    bars: tuple[Bar, ...]
    full_scale: float | None = None  # the value of the longest possible bar; the largest value if None

    @property
    def height(self) -> int:
        """Pixels."""
        return TITLE_HEIGHT + ROW_HEIGHT * len(self.bars)


def main() -> None:
    """Write a plot for each data file."""
    for data in (HERE / "data").glob("*.json"):
        (HERE / "images" / f"{data.stem}.svg").write_text(plot(data.stem))


def plot(name: str) -> str:
    """The SVG of ``docs/data/NAME.json``."""
    data = json.loads((HERE / "data" / f"{name}.json").read_text())
    return drawn(PLOTS[name](data["report"]), f"{data['command']} · {data['hardware']} · {data['date']}")


def engine(report: Any) -> list[Panel]:
    """The output of ``bench engine --json``: one panel for each concurrency."""
    by_concurrency: dict[int, list[Bar]] = {}
    for line in report["lines"]:
        label = line["name"].removesuffix(", bfloat16")
        bar = Bar(label, line["tokens_per_s"], label == "phi3-serve")
        by_concurrency.setdefault(line["concurrency"], []).append(bar)
    return [Panel(f"Tokens per second, {_requests(count)}", tuple(bars)) for count, bars in by_concurrency.items()]


def http(report: Any) -> list[Panel]:
    """The output of ``bench http --json``: time to the first token, then throughput, for each concurrency."""
    panels = []
    for key, title in (("first_token_ms", "First token, milliseconds"), ("all_tokens_per_s", "Tokens per second")):
        for count in sorted({line["concurrency"] for line in report["lines"]}):
            lines = [line for line in report["lines"] if line["concurrency"] == count]
            bars = (Bar(line["endpoint"], line[key], line["endpoint"].startswith("/")) for line in lines)
            panels.append(Panel(f"{title}, {_requests(count)}", tuple(bars)))
    return panels


def overload(report: Any) -> list[Panel]:
    """The output of ``bench overload --json``: how soon 99 % of the refusals came, in each run."""
    bars = (
        Bar(f"run {number}: {line['answered']} answered, {line['refused']} refused", line["p99_refusal_ms"], True)
        for number, line in enumerate(report["lines"], 1)
    )
    clients = report["lines"][0]["clients"]
    return [Panel(f"99 % of the refusals arrived within, milliseconds, {clients:,} clients at once", tuple(bars))]


def gpu(report: Any) -> list[Panel]:
    """The tables of ``make gpu``: the share of the card's limit that decode and prefill reach."""
    panels = []
    for phase in ("decode", "prefill"):
        for card in sorted({line["card"] for line in report["lines"]}):
            lines = [line for line in report["lines"] if (line["phase"], line["card"]) == (phase, card)]
            bars = (
                Bar(f"{line['shape']}, {line['requests']} x {line['tokens']:,} tokens", line["percent_of_limit"], True)
                for line in lines
            )
            panels.append(Panel(f"{phase.capitalize()} on an {card}, % of the card's limit", tuple(bars), 100))
    return panels


def drawn(panels: Sequence[Panel], source: str) -> str:
    """The SVG of ``panels``, one below another, with ``source`` below them."""
    width = 2 * MARGIN + LABEL_WIDTH + BAR_WIDTH + VALUE_WIDTH
    height = 2 * MARGIN + sum(panel.height for panel in panels) + FOOT_HEIGHT
    parts, top = [], MARGIN
    for panel in panels:
        parts += _panel(panel, top)
        top += panel.height
    parts.append(_text(MARGIN, top + FOOT_HEIGHT - 6, source, "fill='#5f646d' font-size='10'"))
    size = f"width='{width}' height='{height}' viewBox='0 0 {width} {height}'"
    background = f"<rect width='{width}' height='{height}' fill='#ffffff'/>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT}>\n{background}\n" + "\n".join(parts) + "\n</svg>\n"


def _panel(panel: Panel, top: int) -> list[str]:
    parts = [_text(MARGIN, top + TITLE_HEIGHT - 12, panel.title, "font-weight='600'")]
    largest = max(panel.full_scale or 0, *(bar.value for bar in panel.bars))
    for number, bar in enumerate(panel.bars):
        y = top + TITLE_HEIGHT + number * ROW_HEIGHT
        left, length = MARGIN + LABEL_WIDTH, BAR_WIDTH * bar.value / largest
        colour = OURS if bar.is_ours else PEER
        parts.append(_text(left - 8, y + 14, bar.label, "text-anchor='end'"))
        parts.append(f"<rect x='{left}' y='{y + 2}' width='{length:.1f}' height='{ROW_HEIGHT - 7}' fill='{colour}'/>")
        parts.append(_text(left + length + 6, y + 14, f"{bar.value:,.0f}", "fill='#5f646d'"))
    return parts


def _text(x: float, y: float, text: str, style: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(text)}</text>"


def _requests(count: int) -> str:
    return "one request" if count == 1 else f"{count} requests at once"


PLOTS = {"engine": engine, "http": http, "overload": overload, "gpu": gpu}
"""The panels of each plot, by the name of its data file."""

if __name__ == "__main__":
    main()
