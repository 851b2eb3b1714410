"""The theme of figures: one colour and marker a family, and charts saved as SVG, PNG or PDF.

The colours keep apart for readers with protanopia, deuteranopia or tritanopia, and in grey: no two have a lightness L*
within 8 of each other (a test simulates all four). With more than eight families colours come again, with other markers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import altair as alt

from redraft.files import whole_file
from redraft.scaling.laws.multiplier import Estimate
from redraft.scaling.results import label, ordered

PAPERS = ("ar", "mdlm", "duo", "esolm", "smdm")
COLOURS = ("#004A76", "#BC5200", "#009C71", "#D28FB3", "#E7B839", "#4C2700", "#5C5C5C", "#181818")
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-left", "triangle-right")
INK, FAINT = "#333333", "#8a8a8a"
FONT = "Helvetica, Arial, Liberation Sans, sans-serif"
WIDTH, HEIGHT = 400, 270  # of a panel

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A drawn figure with its heading and caption. A page flows its panels; a file has them side by side."""

    name: str
    title: str
    caption: str
    panels: tuple[Any, ...]
    columns: int = 2

    def panel_svgs(self) -> list[str]:
        """One self-contained SVG a panel."""
        return [_svg(_styled(panel), f"{self.name}-{i}") for i, panel in enumerate(self.panels)]

    def svg(self) -> str:
        """All panels as one self-contained SVG."""
        return _svg(self._whole(), self.name)

    def png(self, scale: float = 2.0) -> bytes:
        """PNG, `scale` pixels a point."""
        data = io.BytesIO()
        self._whole().save(data, format="png", scale_factor=scale)
        return data.getvalue()

    def pdf(self) -> bytes:
        """PDF, for a paper."""
        data = io.BytesIO()
        self._whole().save(data, format="pdf")
        return data.getvalue()

    def save(self, path: Path) -> None:
        """A file in the format that its name ends in."""
        drawn = getattr(self, path.suffix.lower()[1:])()
        with whole_file(path) as file:
            file.write(drawn.encode() if isinstance(drawn, str) else drawn)

    def _whole(self) -> Any:
        return _styled(
            self.panels[0] if len(self.panels) == 1 else alt.concat(*self.panels, columns=self.columns, spacing=28)
        )


def _svg(chart: Any, name: str) -> str:
    """Ids carry the figure's name, so that several can stand on one page; a point is class p and says what it is.

    Places are cut to hundredths of a pixel and defaults left out: a study of thousands of runs is to stay light.
    """
    file = io.StringIO()
    chart.save(file, format="svg")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", file.getvalue())
    text = re.sub(
        r' role="graphics-symbol" aria-roledescription="(?:point|symbol mark)"', ' role="img" class="p"', text
    )
    text = re.sub(r' (?:transform|d)="[^"]*"', lambda place: re.sub(r"(\.\d\d)\d+", r"\1", place[0]), text)
    return re.sub(r' (?:pointer-events="none"|stroke-miterlimit="10"|fill-opacity="1")', "", text)


def chart_of(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.Data(values=list(rows)))


def points(rows: Sequence[Row], *encodings: Any, **mark: Any) -> alt.Chart:
    """Marks that say what they are when pointed at: the field `d` of their row."""
    style = {"filled": True, "size": 50, "opacity": 1, **mark}
    return chart_of(rows).mark_point(**style).encode(*encodings, alt.Description("d:N"))


def lines(rows: Sequence[Row], *encodings: Any, **mark: Any) -> alt.Chart:
    return chart_of(rows).mark_line(**{"strokeWidth": 1.5, "aria": False, **mark}).encode(*encodings)


def bars(rows: Sequence[Row], *encodings: Any, **mark: Any) -> alt.Chart:
    """Interval bars from `low` to `high`."""
    rule = chart_of(rows).mark_rule(**{"strokeWidth": 1.5, "aria": False, **mark})
    return rule.encode(*encodings, alt.Y("low:Q"), alt.Y2("high:Q"))


def band(rows: Sequence[Row], *encodings: Any, **mark: Any) -> alt.Chart:
    area = chart_of(rows).mark_area(**{"opacity": 0.18, "aria": False, **mark})
    return area.encode(*encodings, alt.Y("low:Q"), alt.Y2("high:Q"))


def words(rows: Sequence[Row], *encodings: Any, **mark: Any) -> alt.Chart:
    return chart_of(rows).mark_text(**{"color": INK, "aria": False, **mark}).encode(*encodings, text="text:N")


def level(value: float, **mark: Any) -> alt.Chart:
    """A horizontal line."""
    rule = chart_of([{"y": value}]).mark_rule(**{"color": FAINT, "strokeDash": [4, 3], "aria": False, **mark})
    return rule.encode(alt.Y("y:Q"))


def panel(*layers: Any, title: str = "", colour: str = INK, width: int = WIDTH, height: int = HEIGHT) -> Any:
    heading = {"title": alt.Title(title, anchor="start", color=colour, fontWeight="bold")} if title else {}
    return alt.layer(*layers, **heading).properties(width=width, height=height)


def ends(estimate: Estimate) -> Row:
    """A row's value and its interval, which is a point where it is not known."""
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return {"y": estimate.value, "low": low, "high": high}


def aside(name: str, shown: Iterable[str]) -> float:
    """A factor on x by which the bars of one budget stand side by side."""
    names = list(shown)
    return float(1.04 ** (names.index(name) - (len(names) - 1) / 2))


def flops_axis(budgets: Iterable[float]) -> alt.X:
    """A logarithmic axis with a tick at every budget."""
    text = "replace(format(datum.value, '.1~e'), '+', '')"
    axis = alt.Axis(values=sorted(set(budgets)), labelExpr=text, labelOverlap="greedy")
    return alt.X("x:Q", title="training FLOPs", scale=alt.Scale(type="log", nice=False, padding=18), axis=axis)


# A label of an axis that spans next to nothing has all digits of its number: then four will do.
LABEL = "length(datum.label) > 7 ? format(datum.value, '.4~r') : datum.label"


def x_axis(title: str, type: Any = "log") -> alt.X:
    return alt.X("x:Q", title=title, scale=alt.Scale(type=type, nice=False, zero=False, padding=16), axis=short())


def y_axis(title: str, field: str = "y", type: Any = "linear", **axis: Any) -> alt.Y:
    scale = alt.Scale(type=type, zero=False, nice=False, padding=14)
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(labelExpr=LABEL, **axis))


def quantity_axis(title: str) -> alt.Y:
    """A logarithmic axis; numbers of parameters as 10k and 3M, others as they are: 0.9 is no 900m."""
    return y_axis(title, type="log", **({"format": ".3~s"} if "parameters" in title else {}))


def short() -> alt.Axis:
    """Ticks as 10k and 3M."""
    return alt.Axis(format=".3~s", tickCount=5, labelOverlap="greedy")


def colours(families: Iterable[str]) -> dict[str, str]:
    """A colour for each family: those of the two papers always have theirs, others take what is left."""
    return dict(zip(PAPERS, COLOURS)) | dict(zip(_others(families), cycle(COLOURS[len(PAPERS) :])))


def _others(families: Iterable[str]) -> list[str]:
    return [name for name in ordered(list(families)) if name not in PAPERS]


def family_keys(families: Iterable[str], shown: Iterable[str], legend: bool = True) -> tuple[alt.Color, alt.Shape]:
    """Colour and marker of the field `family`, the same in every figure of a study."""
    styles = _styles(list(families))
    return _keys({name: styles[name] for name in shown}, legend)


def model_keys(families: Mapping[str, str], legend: bool = True) -> tuple[alt.Color, alt.Shape]:
    """The same for models, given the family of each: the first of a family has its colour and marker, others what is left."""
    styles, free = _styles(list(families.values())), [*zip(COLOURS, MARKERS)]
    free += [(colour, marker) for marker in MARKERS for colour in COLOURS if (colour, marker) not in free]
    first = {family: name for name, family in reversed([*families.items()])}
    own = {first[family]: styles[family] for family in first}
    left = (style for style in free if style not in own.values())
    return _keys({name: own.get(name) or next(left) for name in families}, legend)


def _styles(families: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every family, whoever is drawn."""
    named = colours(families)
    markers = dict(zip([*PAPERS, *_others(families)], cycle(MARKERS)))
    return {name: (named[name], markers[name]) for name in named}


def _keys(styles: Mapping[str, tuple[str, str]], legend: bool) -> tuple[alt.Color, alt.Shape]:
    domain = [label(name) for name in styles]
    style: Row = {"orient": "top", "columns": 5, "symbolSize": 90, "symbolStrokeWidth": 2, "symbolOpacity": 1}
    key = alt.Legend(title=None, **style) if legend else None
    colour = alt.Scale(domain=domain, range=[colour for colour, _ in styles.values()])
    shape = alt.Scale(domain=domain, range=[marker for _, marker in styles.values()])
    return alt.Color("family:N", scale=colour, legend=key), alt.Shape("family:N", scale=shape, legend=key)


def _styled(chart: Any) -> Any:
    """Readable on paper and on a white page."""
    return (
        chart.configure(font=FONT, background="white", padding=6)
        .configure_view(stroke=None)
        .configure_axis(labelColor=INK, titleColor=INK, labelFontSize=12, titleFontSize=12, titleFontWeight="normal",
                        gridColor="#eeeeee", domainColor=FAINT, tickColor=FAINT, aria=False)
        .configure_legend(labelFontSize=12, labelColor=INK, aria=False)
        .configure_title(fontSize=13, fontWeight="normal")
        .configure_text(fontSize=11)
    )  # fmt: skip
