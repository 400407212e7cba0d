"""What a similarity is worth: the value that chance gives, how far above it a value lies, and how certain it is.

Chance is the same activations with the examples of one side in another order: widths, spectra and the number of
examples stay, and what the two sides say of the same example is lost. Any measure has such a null (Gröger et al. 2026).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue
from reptrans.similarity.checks import LEAST, refuse_memory

if TYPE_CHECKING:
    import pandas as pd

    from reptrans.similarity.measures import Measure

FEWEST, MOST = 20, 100_000  # orders: with fewer, no value is beyond chance at 5 %; more say nothing new


@dataclass(frozen=True)
class Calibrated:
    """Tables of one measure, layers of one network (rows) by layers of the other (columns), and what chance gives.

    - `value`: the measure; `mean` and `sd`: of the null, its values under exchanged examples.
    - `effect`: (value - mean) / (best - mean), with the value `best` of identical sides: 1 where nothing is missing, 0
      for chance, whichever way the measure runs.
    - `score`: (value - τ) / (best - τ), or 0 where that is less: the published calibration (Gröger et al. 2026), with
      the 5 % most similar of all values, that of the examples in order among them, beginning at τ.
    - `z`: (value - mean) / sd, turned so that higher is more similar.
    - `p`: (1 + orders at least as similar) / (1 + orders), for this pair of layers alone.
    - `p_searched`: likewise with the largest z over all pairs in each order, as for a search for the most similar
      pair: where nothing is shared, any of them is below 0.05 in 5 % of cases only, however many pairs there are.
    - `best`: the most similar pair, and what chance gives whoever reports it alone: front_layer, end_layer, value, and
      mean, sd, effect, score, p against the most similar pair of each order.
    - `low`, `high`: the 95 % interval over examples, where intervals were asked for, else None.
    """

    value: "pd.DataFrame"
    mean: "pd.DataFrame"
    sd: "pd.DataFrame"
    effect: "pd.DataFrame"
    score: "pd.DataFrame"
    z: "pd.DataFrame"
    p: "pd.DataFrame"
    p_searched: "pd.DataFrame"
    best: dict[str, float | str]
    low: "pd.DataFrame | None" = None
    high: "pd.DataFrame | None" = None

    def beyond(self, level: float = 0.05) -> "pd.DataFrame":
        """Which values chance does not give, at this rate of false alarms for the whole table: yes or no."""
        return self.p_searched <= level

    def rows(self) -> "pd.DataFrame":
        """A row for every pair of layers: front_layer, end_layer, value, mean, sd, effect, score, z, p, p_searched,
        and low and high where there are intervals."""
        import pandas as pd

        tables = {name: table for name, table in vars(self).items() if name != "best" and table is not None}
        return pd.DataFrame(
            [
                {"front_layer": a, "end_layer": b} | {name: table.iat[i, j] for name, table in tables.items()}
                for i, a in enumerate(self.value.index)
                for j, b in enumerate(self.value.columns)
            ]
        )


def orders(examples: int, number: int, generator: torch.Generator) -> Tensor:
    """(number, examples): orders of the examples, drawn at random."""
    refuse_memory(8 * number * examples, f"{number} orders of {examples} examples", "Give fewer of either.")
    drawn = [torch.randperm(examples, generator=generator) for _ in range(number)]
    return torch.stack(drawn) if drawn else torch.empty(0, examples, dtype=torch.long)


def check_null(null: int, intervals: int) -> None:
    """Raise BadValue for numbers of orders and of halves that are none, or too few to say anything."""
    for name, number in (("null", null), ("intervals", intervals)):
        if isinstance(number, bool) or not isinstance(number, int) or not (number == 0 or FEWEST <= number <= MOST):
            raise BadValue(
                f"{name} is a number of random orders from {FEWEST} to {MOST:,}, or 0 for none; given {number!r}."
            )


def refuse_few_orders(examples: int, number: int) -> None:
    """Raise BadData where the examples do not have so many orders as the null asks for."""
    if examples < 15 and math.factorial(examples) <= number:
        raise BadData(
            f"{examples} examples have {math.factorial(examples)} orders, no more than the {number} of the null. Give "
            "more examples (batches of more, for a measure of batches)."
        )


def refuse_few_halves(examples: int) -> None:
    """Raise BadData where half of the examples are too few for any measure."""
    if examples < 2 * LEAST:
        raise BadData(f"halves of {examples} examples are fewer than {LEAST}; give {2 * LEAST} or more.")


def interval(value: np.ndarray, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a 95 % interval from the values of random halves of the examples.

    A half without replacement scatters around the whole by as much as the whole does around the truth, for whatever
    is nearly a mean over examples; drawing with replacement would not do, as a repeated example is similar to itself.
    Source: the delete-d jackknife of Shao and Wu 1989, with half of the examples left out.
    """
    low, high = np.quantile(halves - halves.mean(0), (0.025, 0.975), axis=0)
    return value - high, value - low


def calibrated(value: "pd.DataFrame", null: Tensor, measure: "Measure", halves: Tensor | None = None) -> Calibrated:
    """The tables of `Calibrated` from values (a, b), those under exchanged examples (orders, a, b), and of halves.

    Raises BadData where exchanging the examples changes nothing, as where all rows of a layer are one and the same.
    """
    import pandas as pd

    sign, best = (1, measure.range[1]) if measure.higher_is_better else (-1, measure.range[0])
    own, drawn = value.to_numpy(), null.numpy()
    _refuse_equal(value, drawn)
    mean, sd = drawn.mean(0), drawn.std(0, ddof=1)
    # Value and draws on the same footing, as exchangeable as they are where nothing is shared.
    every = np.concatenate([own[None], drawn]) * sign
    every = (every - every.mean(0)) / every.std(0)
    # Rounding differs from order to order, where all of them give the same.
    reached = every[1:] >= every[0] - 1e-9
    searched = np.nanmax(every[1:], axis=(1, 2))[:, None, None] >= every[0] - 1e-9
    tables = {
        "mean": mean,
        "sd": sd,
        "effect": (own - mean) / (best - mean),
        "score": _score(own, drawn, sign, best),
        "z": sign * (own - mean) / sd,
        "p": (1 + reached.sum(0)) / (1 + len(drawn)),
        "p_searched": (1 + searched.sum(0)) / (1 + len(drawn)),
    }
    if halves is not None:
        tables["low"], tables["high"] = interval(own, halves.numpy())
    tables = {k: pd.DataFrame(v, value.index, value.columns) for k, v in tables.items()}
    return Calibrated(value, best=_most_similar(value, drawn, sign, best), **tables)


def _score(own: np.ndarray, drawn: np.ndarray, sign: int, best: float) -> np.ndarray:
    every = np.sort(np.concatenate([own[None], drawn]) * sign, axis=0)
    critical = sign * every[math.ceil(0.95 * len(every)) - 1]
    # Where chance gives the best value, nothing lies beyond it.
    return np.clip((own - critical) / np.where(best == critical, np.inf, best - critical), 0, None)


def _most_similar(value: "pd.DataFrame", drawn: np.ndarray, sign: int, best: float) -> dict[str, float | str]:
    own = value.to_numpy() * sign
    if np.isnan(own).all():
        return {}
    i, j = np.unravel_index(np.nanargmax(own), own.shape)
    most = sign * np.nanmax(drawn * sign, axis=(1, 2))
    v, mean = value.iat[i, j], most.mean()
    return {
        "front_layer": value.index[i],
        "end_layer": value.columns[j],
        "value": float(v),
        "mean": float(mean),
        "sd": float(most.std(ddof=1)),
        "effect": float((v - mean) / (best - mean)),
        "score": float(_score(np.array(v), most, sign, best)),
        "p": float((1 + (sign * (most - v) >= -1e-9).sum()) / (1 + len(most))),
    }


def _refuse_equal(value: "pd.DataFrame", drawn: np.ndarray) -> None:
    equal = ~(np.ptp(drawn, axis=0) > 1e-12 * np.abs(drawn).max(0))
    if equal.any():
        i, j = np.argwhere(equal)[0]
        raise BadData(
            f"layers {value.index[i]!r} and {value.columns[j]!r} have no null: exchanging examples changes nothing, as "
            "the rows of one of them are all the same. Leave it out."
        )
