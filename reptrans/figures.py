"""Rows or matrices to Matplotlib axes; each function draws on `ax`, or on a new figure, and returns the axes.

Nothing is shown or saved here: end a notebook's cell with `plt.show()`, or hand the axes to `Run.figure`.
"""

from collections.abc import Iterable, Sequence
from itertools import cycle
from math import ceil
from os.path import commonprefix
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from reptrans.errors import BadData, ShapeMismatch, UnknownName, suggest
from reptrans.labels import LABELS
from reptrans.labels import label as _spoken

_MARKERS = "osD^vPX*"
_DASHES = ["--", ":", "-.", (0, (6, 2, 1, 2, 1, 2))]
WIDEST = 7.2  # inches: what a column of the book shows unshrunk
# Each is readable on white, and told apart from its neighbours by readers with any colour vision.
COLOURS = ["#0173b2", "#c44e00", "#02835f", "#9c4f96", "#4d4d4d", "#8a5a2b"]


def layer_curves(
    rows: pd.DataFrame,
    x: str = "layer",
    y: str = "accuracy",
    hue: str | None = "matching",
    spread: str | None = "seed",
    reference: dict[str, float] | None = None,
    ax: Axes | None = None,
    highlight: str | None = None,
) -> Axes:
    """Draw `y` over the layers, in the order in which the rows name them, with one line for each value of `hue`.

    A marker is the mean over the values of `spread` (the rows of one seed are averaged first) and its bar the 95 %
    interval of that mean, by Student's t; of two values it is their range, of one there is none. The axis says which.
    `reference` gives horizontal dashed lines, for instance {"front network": 0.91}. With a single layer the values of
    `hue` are side by side instead. The line of `highlight` is the thick one.

    Raises:
        UnknownName: a column that the rows do not have.
        BadData: no rows.
    """
    _check(rows, [x, y, *filter(None, [hue])])
    layers, kinds = list(pd.unique(rows[x])), list(pd.unique(rows[hue])) if hue else [y]
    side_by_side = len(layers) == 1 and hue is not None
    places = [str(place) for place in (kinds if side_by_side else layers)]
    ax = ax or _axes(_width(places, side_by_side), 4)
    for number, kind in enumerate(kinds):
        chosen = rows[rows[hue] == kind] if hue else rows
        table = _by_seed(chosen, x, y, spread).reindex(layers)
        shift = number if side_by_side else 0.05 * (number - (len(kinds) - 1) / 2)
        _marked_line(ax, table, shift, number, "" if side_by_side else str(kind), thick=kind == highlight)
    for dash, (name, value) in zip(cycle(_DASHES), (reference or {}).items(), strict=False):
        ax.axhline(value, color="0.3", linewidth=1.2, linestyle=dash, label=f"{name} ({value:.3g})", zorder=1)
    ax.set_xticks(range(len(places)), places)
    names = _spoken(hue if side_by_side else x), _with_bars(_spoken(y), rows, [x, *filter(None, [hue])], spread)
    ax.set(xlim=(-0.5, len(places) - 0.5), xlabel=names[0], ylabel=names[1])
    _turn(ax, places, len(places))
    if side_by_side:
        ax.set_title(f"{_spoken(x)} {layers[0]}")
    many = len(kinds) > 1 and not side_by_side
    _legend(ax, hue if many else None, shown=bool(reference) or many)
    return ax


def learning_curves(
    rows: pd.DataFrame,
    x: str = "epoch",
    y: str | Sequence[str] = ("accuracy", "test_accuracy"),
    hue: str | None = None,
    spread: str | None = "seed",
    ax: Axes | None = None,
) -> Axes:
    """Draw one or several columns over the epochs: a colour for each value of `hue`, a dash pattern for each column.

    A line is the mean over the values of `spread` and its band the 95 % interval of that mean, as in `layer_curves`.
    Epochs at which a column was not measured (NaN) are skipped.

    Raises:
        UnknownName: a column that the rows do not have.
        BadData: no rows.
    """
    columns = [y] if isinstance(y, str) else list(y)
    _check(rows, [x, *columns, *filter(None, [hue])])
    ax = ax or _axes(6.5, 4)
    kinds = list(pd.unique(rows[hue])) if hue else [None]
    for number, (kind, column) in enumerate((kind, column) for kind in kinds for column in columns):
        # Without a hue the columns take the colours, so that they are told apart at first sight.
        colour = _colour(kinds.index(kind) if hue else number)
        table = _by_seed(rows if kind is None else rows[rows[hue] == kind], x, column, spread).dropna(how="all")
        of_column = [] if hue and len(columns) == 1 else [_spoken(column).partition(" (")[0]]
        label = ", ".join([*([str(kind)] if hue else []), *of_column])
        dash = ["-", *_DASHES][columns.index(column) % 5]
        marker = "o" if len(table) == 1 else None
        ax.plot(table.index, table.mean(axis=1), color=colour, linestyle=dash, marker=marker, label=label)
        if table.shape[1] > 1:
            ax.fill_between(table.index, *_interval(table), color=colour, alpha=0.15, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel=_spoken(x), ylabel=_with_bars(_common_label(columns), rows, [x, *filter(None, [hue])], spread))
    _legend(ax, None, shown=len(kinds) * len(columns) > 1)
    return ax


def heatmap(
    matrix: pd.DataFrame,
    label: str,
    ax: Axes | None = None,
    annotate: bool | None = None,
    limits: tuple[float, float] | None = None,
    pale: pd.DataFrame | None = None,
) -> Axes:
    """Draw a table of numbers, rows by columns, in a scale of even steps called `label`.

    By default the numbers are written into the cells where there are at most 12 rows and columns. `limits` sets the
    ends of the colour scale, for instance (0, 1) for a similarity; where 0 is their middle, as of (-1, 1) for a
    correlation, it is white. Cells are square unless one side is more than twice the other. Where `pale` says yes,
    a cell is grey, with its number in grey, as one that is not to be read.
    """
    height, width = matrix.shape
    if not matrix.size:
        raise BadData(f"a heat map needs at least one row and one column, and the matrix is {height} x {width}.")
    annotate = max(height, width) <= 12 if annotate is None else annotate
    ax = ax or _axes(_side(width) + 2.2, _side(height) + 1.2)
    low, high = limits or (None, None)
    colours = "RdBu_r" if limits and low == -high else "viridis"
    # A bar inside the axes' box is as high as the map, whatever its shape, and as wide for maps of all sizes.
    bar = ax.inset_axes((1 + 0.25 / _side(width), 0, 0.15 / _side(width), 1))
    seaborn.heatmap(matrix, ax=ax, cmap=colours, vmin=low, vmax=high, annot=annotate, fmt=".2f", cbar_ax=bar,
                    annot_kws={"size": 8}, square=0.5 <= height / width <= 2, cbar_kws={"label": label})  # fmt: skip
    ax.grid(False)
    if pale is not None:
        _pale(ax, matrix, pale, annotate)
    _turn(ax, matrix.columns, width)
    ax.tick_params(axis="y", rotation=0, labelsize="small" if height > 20 else "medium")
    return ax


def dissimilarities(matrix: Tensor | np.ndarray, groups: Sequence | None = None, ax: Axes | None = None) -> Axes:
    """Draw a matrix (n, n) of distances between examples, sorted by `groups` (n,), their classes say, which are named.

    Raises ShapeMismatch for a matrix that is not square, or groups that are not as many.
    """
    values = np.asarray(matrix.detach().cpu() if isinstance(matrix, Tensor) else matrix, dtype=float)
    groups = None if groups is None else np.asarray(groups)
    if values.ndim != 2 or len({*values.shape, len(values) if groups is None else len(groups)}) > 1:
        given = "" if groups is None else f" and {len(groups)} groups"
        raise ShapeMismatch(f"distances between n examples are (n, n), with n groups; given {values.shape}{given}.")
    ax = ax or _axes(5.4, 4.4)
    if groups is not None:
        order = np.argsort(groups, kind="stable")
        values, kinds = values[np.ix_(order, order)], pd.unique(groups[order])
        sizes = np.array([(groups == kind).sum() for kind in kinds])
        ends = sizes.cumsum()
        for end in ends[:-1]:
            ax.axhline(end - 0.5, color="white", linewidth=0.6)
            ax.axvline(end - 0.5, color="white", linewidth=0.6)
        ax.set_xticks(ends - sizes / 2 - 0.5, kinds, rotation=90)
        ax.set_yticks(ends - sizes / 2 - 0.5, kinds)
    image = ax.imshow(values, cmap="viridis")
    ax.figure.colorbar(image, ax=ax, label="distance")
    ax.grid(False)
    return ax


def _pale(ax: Axes, matrix: pd.DataFrame, pale: pd.DataFrame, annotate: bool) -> None:
    """Cover the cells of a heat map that `pale` names."""
    for i, j in np.argwhere(pale.to_numpy()):
        ax.add_patch(plt.Rectangle((j, i), 1, 1, facecolor="0.92", edgecolor="white", linewidth=0.5))
        if annotate:
            ax.text(j + 0.5, i + 0.5, f"{matrix.iat[i, j]:.2f}", color="0.55", size=8, ha="center", va="center")


def weights(
    matrix: Tensor | np.ndarray | pd.DataFrame, label: str = "weight", ax: Axes | None = None, *, paired: bool = False
) -> Axes:
    """Draw a stitch's weights (out, in): white is 0, red above, blue below, to the same end on both sides.

    A 1x1 convolution's (out, in, 1, 1) will do as well. `paired`: the columns in the order in which the diagonal holds
    the largest sum of absolute weights, one of each row and column; without a partner, last.

    Raises:
        ShapeMismatch: anything else than a matrix.
    """
    values = np.asarray(matrix.detach().cpu().double() if isinstance(matrix, Tensor) else matrix, dtype=float)
    if values.ndim < 2 or values.shape[2:] != (1,) * (values.ndim - 2) or not values.size:
        raise ShapeMismatch(f"weights have the shape (out, in) or (out, in, 1, 1), and these have {values.shape}.")
    table, end = pd.DataFrame(values.reshape(values.shape[:2])), float(np.nanmax(np.abs(values))) or 1.0
    if paired:
        partners = linear_sum_assignment(-np.abs(np.nan_to_num(table)))[1]  # by row
        table = table[[*partners, *sorted({*table} - {*partners})]]
    ax = heatmap(table, label, ax, annotate=False, limits=(-end, end))
    ax.set(xlabel="front channel (in)", ylabel="end channel (out)")
    return ax


def image_row(images: Tensor, most: int = 10) -> Axes:
    """Draw up to `most` images (n, c, h, w), uint8 or in [0, 1], side by side; one channel is grey."""
    from torchvision.utils import make_grid  # here, for the sake of what draws no images

    white = 1 if images.is_floating_point() else 255
    strip = make_grid(images[:most].cpu(), nrow=most, padding=2, pad_value=white)
    count, (high, wide) = min(len(images), most), images.shape[2:]
    ax = _axes(min(count, WIDEST), min(count, WIDEST) * high / (count * wide))
    ax.imshow(strip.clamp(0, white).movedim(0, -1).numpy(), interpolation="nearest")
    ax.set_axis_off()
    return ax


def forest(table: pd.DataFrame, label: str, name: str = "method") -> Axes:
    """One row for each effect, a dot with its interval, from a table with the columns of `bench.verdicts`.

    Above 0 by verdict is blue, below orange, the undecided are grey; what is published is a hollow diamond.
    """
    _check(table, [name, "gain", "low", "high", "n", "published", "verdict"])
    colours = {"held": _colour(0), "contradicted": _colour(1)}
    ax = _axes(6.2, 0.34 * len(table) + 1.0)
    place = np.arange(len(table))[::-1]
    for y, row in zip(place, table.to_dict("records"), strict=True):
        colour = colours.get(row["verdict"], "0.45")
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2, solid_capstyle="round")
        ax.plot(row["gain"], y, "o", color=colour, markersize=6)
        ax.plot(row["published"], y, "D", markerfacecolor="none", markeredgecolor="0.2", markersize=5)
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set_ylim(-0.6, len(table) - 0.4)
    over = table["over"].to_list() if "over" in table and table["over"].nunique() > 1 else [None] * len(table)
    ax.set_yticks(place, [f"{n} − {o}" if o else n for n, o in zip(table[name], over, strict=True)])
    ax.set_xlabel(f"{label}, 95 % interval, {table['n'].max()} seeds")
    ax.grid(False, axis="y")
    return ax


def intervals(table: pd.DataFrame, value: str, hue: str, label: str, name: str = "method") -> Axes:
    """One row for each `name`, and in it a dot at each `value` with its interval (low, high), coloured by `hue`.

    `label` says what the axis shows, and of what the intervals are.
    """
    _check(table, [name, value, "low", "high", hue])
    names, kinds = list(pd.unique(table[name])), list(pd.unique(table[hue]))
    together = len(names) < len(table) and not table.duplicated([name, hue]).any()
    ax = _axes(6.2, (0.2 + 0.13 * len(kinds) * together) * len(names) + 1.0)
    for number, kind in enumerate(kinds):
        rows, colour = table[table[hue] == kind], _colour(number)
        at = -rows[name].map(names.index) + 0.2 * ((len(kinds) - 1) / 2 - number) * together
        ax.hlines(at, rows["low"], rows["high"], color=colour, linewidth=2)
        ax.plot(rows[value], at, _MARKERS[number % len(_MARKERS)], color=colour, label=str(kind), markersize=5)
    ax.set_yticks(-np.arange(len(names)), [_spoken(str(v)) for v in names])
    ax.set_ylim(-len(names) + 0.4, 0.6)
    ax.set_xlabel(label)
    ax.grid(False, axis="y")
    _legend(ax, None, len(kinds) > 1)
    return ax


def trade(table: pd.DataFrame, x: str, y: str, name: str, labels: tuple[str, str]) -> Axes:
    """Two effects of each row against each other, with their intervals (columns `x`_low, `x`_high, and so on)."""
    _check(table, [name, *(f"{value}{end}" for value in (x, y) for end in ("", "_low", "_high"))])
    ax = _axes(6.2, 3.8)
    for number, row in enumerate(table.to_dict("records")):
        ax.plot([row[f"{x}_low"], row[f"{x}_high"]], [row[y]] * 2, color=_colour(number), linewidth=1.5)
        ax.plot([row[x]] * 2, [row[f"{y}_low"], row[f"{y}_high"]], color=_colour(number), linewidth=1.5)
        ax.plot(row[x], row[y], _MARKERS[number % len(_MARKERS)], color=_colour(number), label=str(row[name]))
    ax.axhline(0, color="0.3", linewidth=1)
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    _legend(ax, None, True)
    return ax


def scatter(table: pd.DataFrame, x: str, y: str, hue: str, labels: tuple[str, str]) -> Axes:
    """A point for each row at its `x` and `y`, with the colour and mark of its `hue`; `labels` of the two axes."""
    _check(table, [x, y, hue])
    ax = _axes(6.2, 3.8)
    for number, (kind, rows) in enumerate(table.groupby(hue, sort=False)):
        ax.plot(rows[x], rows[y], _MARKERS[number % len(_MARKERS)], color=_colour(number), label=str(kind), alpha=0.8)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    _legend(ax, None, True)
    return ax


def map_grid(images: Tensor, maps: dict[str, Tensor], most: int = 8) -> np.ndarray:
    """A row of pictures for each entry of `maps`: the images (n, c, h, w) in grey under its maps (n, h', w').

    Each map has its own scale, from 0 to its largest value; a map without values shows the image alone. Returns the
    axes, (rows, columns).
    """
    count = min(most, len(images))
    grey = images[:count].detach().float().mean(1).cpu().numpy()
    side = min(0.9, (WIDEST - 1.2) / count)
    size = {"figsize": (side * count + 1.2, side * len(maps) + 0.2)}
    _, axes = plt.subplots(len(maps), count, squeeze=False, gridspec_kw={"wspace": 0, "hspace": 0}, **size)
    extent = (0, grey.shape[2], grey.shape[1], 0)
    for row, (name, values) in zip(axes, maps.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for ax, image, each in zip(row, grey, values[:count].detach().float().cpu().numpy(), strict=True):
            ax.imshow(image, cmap="gray", extent=extent)
            top = each.max() or 1.0
            ax.imshow(each, cmap="viridis", alpha=0.6, extent=extent, vmin=0, vmax=top, interpolation="bilinear")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    return axes


def _check(rows: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in rows.columns:
            raise UnknownName(f"the rows have no column {column!r}. {suggest(column, map(str, rows.columns))}")
    if rows.empty:
        raise BadData("there are no rows to draw.")


def _by_seed(rows: pd.DataFrame, x: str, y: str, spread: str | None) -> pd.DataFrame:
    """`y` averaged for each value of `x` (index, in the order met) and of `spread` (columns)."""
    keys = [x, spread] if spread in rows.columns else [x]
    means = rows.groupby(keys, sort=False, observed=True)[y].mean()
    return means.unstack(sort=False) if len(keys) > 1 else means.to_frame()


def _interval(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The ends of the 95 % interval of each row's mean, Student's; of two values or fewer, their range."""
    from scipy.special import stdtrit  # here, for the sake of what draws no interval

    n, low, high = table.count(axis=1), table.min(axis=1), table.max(axis=1)
    reach = table.std(axis=1) / np.sqrt(n) * stdtrit((n - 1).clip(lower=1), 0.975)
    return low.where(n < 3, table.mean(axis=1) - reach), high.where(n < 3, table.mean(axis=1) + reach)


def _with_bars(text: str, rows: pd.DataFrame, by: list[str], spread: str | None) -> str:
    """The name of an axis, and what its bars or bands are."""
    n = int(rows.groupby(by, observed=True)[spread].nunique().max()) if spread in rows.columns else 1
    bars = f"\nmean and {'range' if n == 2 else '95 % interval'}, {n} {str(spread).rpartition('_')[2]}s"
    return text + bars * (n > 1)


def _marked_line(ax: Axes, table: pd.DataFrame, offset: float, number: int, label: str, thick: bool) -> None:
    mean, (low, high) = table.mean(axis=1), _interval(table)
    reach = [mean - low, high - mean] if table.shape[1] > 1 else None
    style = {"color": _colour(number), "marker": _MARKERS[number % len(_MARKERS)], "markersize": 6, "capsize": 3}
    ax.errorbar(np.arange(len(table)) + offset, mean, yerr=reach, label=label, linewidth=2.6 if thick else 1.3, **style)


def _turn(ax: Axes, names: Iterable[Any], count: int) -> None:
    """Turn the names below the axis where they would run into each other; of very many, write every second or so."""
    across = ax.get_position().width * ax.figure.get_figure(root=True).get_figwidth()
    if count * 0.22 > across:
        step, texts = ceil(count * 0.16 / across), [text.get_text() for text in ax.get_xticklabels()]
        ax.set_xticks(ax.get_xticks()[::step], texts[::step])
        ax.tick_params(axis="x", rotation=90, labelsize="small")
    elif count * max(len(str(name)) + 1.5 for name in names) * 0.09 > across:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    else:
        ax.tick_params(axis="x", rotation=0)


def _legend(ax: Axes, title: str | None, shown: bool) -> None:
    """A legend to the right of the axes, where it hides nothing."""
    if shown:
        ax.legend(title=_spoken(title) if title else None, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _axes(width: float, height: float) -> Axes:
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _width(places: list[str], side_by_side: bool) -> float:
    """A figure's width in inches: room for the places and, beside them, the legend."""
    each = 0.11 * (max(map(len, places)) + 3) if side_by_side else 0.45
    return min(max(4.5, each * len(places) + 1.0) + 2.0, WIDEST)


def _side(count: int) -> float:
    return min(max(0.45 * count, 1.8), WIDEST - 2.2)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _common_label(columns: list[str]) -> str:
    """What several columns share, for instance 'accuracy (fraction)' for train_accuracy and test_accuracy."""
    common = commonprefix([column[::-1] for column in columns])[::-1].strip("_")
    return _spoken(common) if common in LABELS else ", ".join(map(_spoken, columns))
