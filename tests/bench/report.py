"""What was measured, as a table for people and as JSON: each figure with its floor, its ratio and its target."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """What a figure should reach: at least a share of the floor, or a value in the figure's own unit."""

    words: str
    ratio: float | None = None
    least: float | None = None
    most: float | None = None

    def reached(self, value: float, ratio: float | None) -> bool:
        if self.ratio is not None:
            return ratio is not None and ratio >= self.ratio
        return value >= self.least if self.least is not None else value <= self.most


@dataclass(frozen=True)
class Figure:
    """One line. `product` and `floor` have one value for each round, measured side by side."""

    part: str
    name: str
    unit: str
    product: Sequence[float]
    floor: Sequence[float] = ()
    target: Target | None = None
    samples: int = 0
    floor_is: str = ""
    ratios: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.ratios.extend(ours / least for ours, least in zip(self.product, self.floor, strict=False) if least)

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "ok" if self.target.reached(statistics.median(self.product), self.ratio) else "missed"

    def as_json(self) -> dict:
        return {
            "part": self.part,
            "name": self.name,
            "unit": self.unit,
            "product": _spread(self.product),
            "floor": _spread(self.floor),
            "floorIs": self.floor_is,
            "ratio": _spread(self.ratios),
            "target": self.target.words if self.target else None,
            "verdict": self.verdict or None,
            "samples": self.samples,
        }


def _spread(values: Sequence[float]) -> dict | None:
    if not values:
        return None
    spread = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, 4) for name, value in spread.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that is not exceeded by this share of all (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)]


HEADINGS = ("", "unit", "product", "(low–high)", "floor", "ratio", "(low–high)", "target", "")


def table(figures: Sequence[Figure]) -> str:
    rows = [HEADINGS, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    left = {0, 1, 7, 8}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.name,
        figure.unit,
        _short(statistics.median(figure.product)),
        f"{_short(min(figure.product))}–{_short(max(figure.product))}" if len(figure.product) > 1 else "",
        _short(statistics.median(figure.floor)) if figure.floor else "",
        f"{figure.ratio:.2f}" if figure.ratio is not None else "",
        f"{min(figure.ratios):.2f}–{max(figure.ratios):.2f}" if len(figure.ratios) > 1 else "",
        figure.target.words if figure.target else "",
        figure.verdict,
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
