"""Which of several contestants is better, by how much, and whether the trials can tell: one protocol for every table.

Three splits, the same number of trials for every contestant, the choice by validation on tuning seeds and frozen, then
fresh seeds, paired by seed, with intervals; a positive control that has to win before anything is said of the others.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reptrans.errors import BadData, BadValue, choose

if TYPE_CHECKING:
    import pandas as pd

SMALL = 0.005  # half a point of accuracy
LEVEL = 0.95
TUNING = 10_000  # seeds from here on choose; those below report
# Half decades around what is published.
GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Effect:
    """A mean difference of n pairs with its interval; `p` is two-sided for a mean of 0.

    Of fewer than two pairs there is no interval: low, high, sd and p are NaN.
    """

    mean: float
    sd: float
    low: float
    high: float
    p: float
    n: int

    def p_below(self, value: float) -> float:
        """One-sided p for a true mean of `value` or more; NaN where there is no interval, or no value."""
        from scipy.special import stdtr

        if math.isnan(value) or self.n < 2:
            return math.nan
        if self.sd == 0:
            return 2.0**-self.n if self.mean < value else 1.0
        return float(stdtr(self.n - 1, (self.mean - value) / (self.sd / math.sqrt(self.n))))


def effect(differences: Iterable[float], level: float = LEVEL) -> Effect:
    """The mean of paired differences with Student's interval, mean ± t(n - 1) * sd / sqrt(n), at 95 % by default.

    Where all n differences are equal the sd says nothing, and p is the sign test's, 2 ** (1 - n).
    Raises BadData for no difference, or one that is not finite.
    """
    from scipy.special import stdtr, stdtrit

    values = [float(value) for value in differences]
    if not values or not all(map(math.isfinite, values)):
        raise BadData(f"paired differences are finite numbers, at least one; these are {values[:8]}.")
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Effect(mean, math.nan, math.nan, math.nan, math.nan, n)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    error = sd / math.sqrt(n)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Effect(mean, 0.0, mean, mean, 2.0 ** (1 - n) if mean else 1.0, n)
    reach = error * float(stdtrit(n - 1, (1 + level) / 2))
    return Effect(mean, sd, mean - reach, mean + reach, float(2 * stdtr(n - 1, -abs(mean) / error)), n)


def holm(p: Iterable[float]) -> list[float]:
    """p-values after Holm's correction: the k-th smallest of m times m - k + 1, none below the one before; NaN stays.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = list(p)
    order = sorted((k for k, value in enumerate(p) if not math.isnan(value)), key=p.__getitem__)
    adjusted, last = list(p), 0.0
    for rank, k in enumerate(order):
        last = adjusted[k] = min(1.0, max(last, (len(order) - rank) * p[k]))
    return adjusted


def verdicts(
    scores: "pd.DataFrame",
    over: Mapping[str, str],
    *,
    published: Mapping[str, float] | None = None,
    control: tuple[str, str] | None = None,
    small: float = SMALL,
) -> "tuple[pd.DataFrame, str]":
    """(table, note): the gain of each contestant over its baseline, paired by seed, and what may be said of it.

    `scores`: one row per seed, one column per contestant; more is better. `over`: {contestant: baseline}.
    `published`: gains that a source reports, above 0 where it claims one. `control`: (contestant, baseline), a known
    gain; where its interval is not above 0, or there are fewer than two seeds, the verdicts are empty and the note
    says why. Columns: method, over, gain, low, high, n, better (seeds), p (Holm over the rows), published, verdict.
    Verdicts, in this order: "contradicted", the interval lies below half of what is published; "held", above 0;
    "contradicted", below 0 (these three need a corrected p below 5 %); "small", inside ± `small` (0.005, half a point
    of accuracy); "not decided".
    Raises UnknownName for a column that is not there; BadData for scores that are missing.
    """
    import pandas as pd

    published = dict(published or {})
    for name in {*over, *over.values(), *(control or ())}:
        choose(name, scores.columns, "there are no scores of {}")
    found = {name: effect(scores[name] - scores[base]) for name, base in over.items()}
    p = holm(each.p for each in found.values())
    fewer = holm(each.p_below(published.get(name, math.nan) / 2) for name, each in found.items())
    note = _note(scores, control)
    rows = [
        {
            "method": name,
            "over": over[name],
            "gain": each.mean,
            "low": each.low,
            "high": each.high,
            "n": each.n,
            "better": int((scores[name] > scores[over[name]]).sum()),
            "p": corrected,
            "published": published.get(name, math.nan),
            "verdict": "" if note else _verdict(each, corrected, less, small),
        }
        for (name, each), corrected, less in zip(found.items(), p, fewer, strict=True)
    ]
    return pd.DataFrame(rows), note


def chosen(trials: "pd.DataFrame") -> dict[str, float]:
    """{contestant: its best trial}, by the mean score over tuning seeds; of equals the one nearest to 1.

    `trials`: rows with method, trial (a number above 0, 1 being what is published), seed and score, the same trials for
    each. Raises BadData where contestants had unequal trials; BadValue for a grid of one.
    """
    means = trials.groupby(["method", "trial"], sort=False)["score"].agg(["mean", "size"])
    grids = {name: frozenset(rows.loc[name].index) for name, rows in means.groupby(level=0, sort=False)}
    if len(set(grids.values())) > 1 or means["size"].nunique() > 1:
        raise BadData(f"contestants had unequal trials: { {name: sorted(grid) for name, grid in grids.items()} }.")
    check_grid(next(iter(grids.values())))

    def best(name: str) -> float:
        return max(grids[name], key=lambda trial: (means["mean"][name, trial], -abs(math.log(trial))))

    return {name: best(name) for name in grids}


def check_grid(grid: Iterable[float]) -> list[float]:
    """The trials, ascending; BadValue for fewer than two, one that is there twice, or one that is not above 0."""
    grid = sorted(grid)
    if len(grid) < 2 or len(set(grid)) < len(grid) or not all(0 < trial < math.inf for trial in grid):
        raise BadValue(
            f"the trials are {', '.join(map(str, grid)) or 'none'}. Give at least two different numbers above 0, as in "
            f"{','.join(f'{trial:g}' for trial in GRID)}, or none to leave all weights as published."
        )
    return grid


def plain_trial(factor: float) -> tuple[float, float]:
    """(of the learning rate, of weight decay): what a contestant without weights of its own multiplies in a trial.

    From 0.1 to 3 it is the rate, beyond that the decay: so 0.1, 0.3, 1, 3 times the one and 0.01, 0.03, 10 times the
    other with the usual grid.
    """
    return (factor, 1.0) if 0.1 <= factor <= 3 else (1.0, factor)


def read_factors(text: str, known: Collection[str]) -> dict[str, float]:
    """{contestant: factor} of a text like "at:0.3,fm:0.1". Raises UnknownName; BadValue for what is not above 0."""
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, colon, value = (piece.strip() for piece in part.partition(":"))
        choose(name, known, "factors: there is no method {}")
        if name in found:
            raise BadValue(f"factors: {name!r} is named twice. Name it once.")
        found[name] = number(value) if colon else math.nan
        if not 0 < found[name] < math.inf:
            raise BadValue(f"factors: {part!r} is not of the form method:number, a number above 0, as in at:0.3.")
    return found


def number(text: str) -> float:
    """The number that `text` spells; BadValue where it spells none."""
    try:
        return float(text)
    except ValueError:
        raise BadValue(f"{text!r} is no number.") from None


def _verdict(found: Effect, p: float, p_fewer: float, small: float) -> str:
    if p_fewer < (1 - LEVEL) / 2:  # one-sided, as the end of an interval is
        return "contradicted"
    if p < 1 - LEVEL:
        return "held" if found.mean > 0 else "contradicted"
    return "small" if -small < found.low and found.high < small else "not decided"


def _note(scores: "pd.DataFrame", control: tuple[str, str] | None) -> str:
    """Why this table decides nothing; "" where it may."""
    if len(scores) < 2:
        return f"{len(scores)} seed gives no interval, so there are no verdicts. Take at least two seeds."
    if control is None:
        return ""
    known = effect(scores[control[0]] - scores[control[1]])
    if known.low > 0:
        return ""
    return (
        f"{control[0]} does not beat {control[1]} here ({known.mean:+.3f} [{known.low:+.3f}, {known.high:+.3f}]), "
        "as it is known to: so this table decides nothing, and there are no verdicts."
    )
