"""Bars and curves as an SVG, for figures that people would rather see. No library is needed; the file stays small."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LABEL_WIDTH, BAR_WIDTH, VALUE_WIDTH = 230, 400, 90  # pixels
ROW_HEIGHT, TITLE_HEIGHT, FOOT_HEIGHT, MARGIN = 24, 34, 24, 14
CURVES_HEIGHT = 70
_STRONG, _WEAK, _FAINT_TEXT = "#0f6b5c", "#9aa0aa", "#5f646d"
_FONT = "font-family='system-ui, sans-serif' font-size='13'"
_CHARACTER_WIDTH = 7  # pixels, about


@dataclass(frozen=True, slots=True)
class Bar:
    """One value with its label."""

    label: str
    value: float
    is_strong: bool = True  # in colour; others are grey


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


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at equal distances, drawn as steps and with a scale of its own."""

    label: str
    values: tuple[float, ...]
    is_strong: bool = True


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves over the same time."""

    title: str
    curves: tuple[Curve, ...]
    end: str  # what the right edge means

    @property
    def height(self) -> int:
        """Pixels."""
        return TITLE_HEIGHT + CURVES_HEIGHT

    @property
    def bars(self) -> tuple[Bar, ...]:
        """None; the labels of curves stand at the left, too."""
        return ()


def drawn(panels: Sequence[Panel | Curves], source: str) -> str:
    """The SVG of ``panels``, one below another, with ``source`` below them."""
    label_width = max([LABEL_WIDTH, *(_CHARACTER_WIDTH * len(bar.label) for panel in panels for bar in panel.bars)])
    width = 2 * MARGIN + label_width + BAR_WIDTH + VALUE_WIDTH
    height = 2 * MARGIN + sum(panel.height for panel in panels) + FOOT_HEIGHT
    parts, top = [], MARGIN
    for panel in panels:
        left = MARGIN + label_width
        parts += _curves(panel, top, left) if isinstance(panel, Curves) else _panel(panel, top, left)
        top += panel.height
    parts.append(_text(MARGIN, top + FOOT_HEIGHT - 6, source, f"fill='{_FAINT_TEXT}' font-size='10'"))
    size = f"width='{width}' height='{height}' viewBox='0 0 {width} {height}'"
    background = f"<rect width='{width}' height='{height}' fill='#ffffff'/>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {_FONT}>\n{background}\n" + "\n".join(parts) + "\n</svg>\n"


def _panel(panel: Panel, top: int, left: int) -> list[str]:
    parts = [_text(MARGIN, top + TITLE_HEIGHT - 12, panel.title, "font-weight='600'")]
    largest = max(panel.full_scale or 0, *(bar.value for bar in panel.bars), 0) or 1
    for number, bar in enumerate(panel.bars):
        y = top + TITLE_HEIGHT + number * ROW_HEIGHT
        length = BAR_WIDTH * bar.value / largest
        colour = _STRONG if bar.is_strong else _WEAK
        parts.append(_text(left - 8, y + 14, bar.label, "text-anchor='end'"))
        parts.append(f"<rect x='{left}' y='{y + 2}' width='{length:.1f}' height='{ROW_HEIGHT - 7}' fill='{colour}'/>")
        value = f"{bar.value:,.0f}" if bar.value >= 10 or bar.value == int(bar.value) else f"{bar.value:.2g}"
        parts.append(_text(left + length + 6, y + 14, value, f"fill='{_FAINT_TEXT}'"))
    return parts


def _curves(panel: Curves, top: int, left: int) -> list[str]:
    parts = [_text(MARGIN, top + TITLE_HEIGHT - 12, panel.title, "font-weight='600'")]
    bottom = top + TITLE_HEIGHT + CURVES_HEIGHT - 18
    for number, curve in enumerate(panel.curves):
        largest = max((*curve.values, 0)) or 1
        colour = _STRONG if curve.is_strong else _WEAK
        width, height = BAR_WIDTH / max(1, len(curve.values)), bottom - top - TITLE_HEIGHT
        path = f"M{left} {bottom - height * curve.values[0] / largest:.1f}" if curve.values else ""
        for place, value in enumerate(curve.values, 1):
            path += f"V{bottom - height * value / largest:.1f}H{left + place * width:.1f}"
        parts.append(f"<path d='{path}' fill='none' stroke='{colour}'/>")
        label = f"{curve.label}, at most {largest:,.3g}"
        parts.append(
            _text(left - 8, top + TITLE_HEIGHT + 14 + 18 * number, label, f"text-anchor='end' fill='{colour}'")
        )
    axis = f"M{left} {bottom}H{left + BAR_WIDTH}"
    parts.append(f"<path d='{axis}' stroke='{_FAINT_TEXT}'/>")
    parts.append(_text(left + BAR_WIDTH + 6, bottom + 4, panel.end, f"fill='{_FAINT_TEXT}'"))
    return parts


def _text(x: float, y: float, text: str, style: str) -> str:
    readable = "".join(c if c.isprintable() else " " for c in text)  # XML has no control characters
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(readable)}</text>"
