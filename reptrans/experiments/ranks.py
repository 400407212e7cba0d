"""Do the layers that one quantity puts first also come first by another? Rank correlations over layers and seeds."""

import numpy as np
import pandas as pd
from scipy.stats import t

from reptrans.errors import BadData, BadValue


def rank_correlations(
    rows: pd.DataFrame, given: str = "", *, level: float = 0.95, replicates: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Spearman correlation over layers of every cheap with every expensive quantity: a row for each.

    Values are ranked within each seed (ties share their mean rank; distances change sign), and for layers l of seeds s

        C_xy = sum_s v_s [sum_l w_l x_sl y_sl - (sum_l w_l x_sl)(sum_l w_l y_sl)],
        r_xy = C_xy / sqrt(C_xx C_yy)

    with equal weights v and w is `rho`: with one seed Spearman's, without ties the mean of the seeds'. `given="depth"`:
    the partial correlation, see `partial_correlation`, with the layer's place in the network held fixed. `least` and
    `most`: over single seeds. NaN where a quantity is the same at all layers, or nothing but depth is left of it.
    `low`, `high`: an interval for new layers *and* new seeds. In each replicate all v and all w are drawn anew,
    flat Dirichlet, each layer with the same w in all seeds; the standard deviation d of the replicates' artanh r gives

        artanh rho ± q d sqrt((n + 1) / (n - 1)),
        q of Student's t with n - 2 (given depth, n - 3) degrees of freedom

    for n layers: the root undoes the smaller variance of Dirichlet weights. NaN where rho is 1 or -1, which no weights
    change, and where rho is NaN. One seed says nothing about others. Intervals are not corrected for their number. In
    600 simulations each, with 8 or 10 layers and 3 seeds, 95 % intervals held the truth in 95 to 98 %.
    `rows` as of `atlas`. Raises BadData for missing values, BadValue for `given`.
    Source: Owen & Eckles 2012, weights of crossed factors as products. Deviation: artanh and t in place of quantiles,
    which are too narrow for a few layers.
    """
    if given not in ("", "depth"):
        raise BadValue(f"given is {given!r}; possible: '' for nothing, 'depth' for the layer's depth held fixed.")
    ranks = _ranks(rows)
    (seeds, layers), cube = (len(level) for level in ranks.index.levels), _cube(ranks)
    generator = np.random.default_rng(seed)
    each, same = np.eye(seeds), np.full((seeds, layers), 1 / layers)
    single = _correlations(cube, each, same, given)
    rho = _correlations(cube, each.mean(0, keepdims=True), same[:1], given)[0]
    drawn = _correlations(cube, *(generator.dirichlet(np.ones(n), replicates) for n in (seeds, layers)), given)
    low, high = _interval(rho, drawn, layers, layers - (3 if given else 2), level)
    found = {"rho": rho, "low": low, "high": high, "least": single.min(0), "most": single.max(0)}
    kinds = rows.groupby("quantity", sort=False)["kind"].first()
    place = {name: k for k, name in enumerate(ranks.columns)}
    return pd.DataFrame([
        {"cheap": x, "expensive": y, "given": given}
        | {name: values[place[x], place[y]] for name, values in found.items()} | {"layers": layers, "seeds": seeds}
        for x in kinds.index[kinds == "cheap"] for y in kinds.index[kinds == "expensive"]
    ])  # fmt: skip


def partial_correlation(
    r_xy: float | np.ndarray, r_xz: float | np.ndarray, r_yz: float | np.ndarray
) -> float | np.ndarray:
    """(r_xy - r_xz r_yz) / sqrt((1 - r_xz²)(1 - r_yz²)): what is left of r_xy for fixed z, in [-1, 1].

    Of ranks, the correlation of what a straight line through the ranks of z leaves of those of x and y. Numbers or
    arrays; NaN where z says all of x or y.
    """
    left = (1 - np.square(r_xz)) * (1 - np.square(r_yz))
    root = np.sqrt(np.where(left > 1e-12, left, np.nan))
    return np.clip((r_xy - r_xz * r_yz) / root, -1, 1)


def profiles(rows: pd.DataFrame) -> pd.DataFrame:
    """How every quantity goes with depth, and how well one seed predicts another: a row for each.

    `with_depth`: pooled Spearman correlation with depth, as in `rank_correlations`, higher values being more
    similar. `between_seeds`: mean Spearman correlation of the quantity at one seed with itself at another, over all
    pairs of seeds. Its square root is about the most that anything known of the layer alone can reach with one seed's
    values (the correction for attenuation, Spearman 1904). NaN for one seed, and for quantities that do not vary.
    """
    ranks = _ranks(rows)
    (seeds, layers), cube = (len(level) for level in ranks.index.levels), _cube(ranks)
    depth = _correlations(cube, np.full((1, seeds), 1 / seeds), np.full((1, layers), 1 / layers))[0, -1]
    between = [_mean_of_pairs(ranks[name].unstack("seed").corr().to_numpy()) for name in ranks]
    table = pd.DataFrame({"quantity": ranks.columns, "with_depth": depth, "between_seeds": between})
    return table.iloc[:-1]


def _mean_of_pairs(r: np.ndarray) -> float:
    above = r[np.triu_indices(len(r), 1)]
    return above.mean() if above.size else np.nan


def _ranks(rows: pd.DataFrame) -> pd.DataFrame:
    """Ranks within the seed, by (seed, layer), with a column for every quantity and a last one for depth."""
    turned = rows["value"].where(rows["higher_is_better"], -rows["value"])
    wide = rows.assign(value=turned).pivot(index=["seed", "layer"], columns="quantity", values="value")
    wide = wide[pd.unique(rows["quantity"])].assign(depth=rows.groupby(["seed", "layer"])["depth"].first())
    full = wide.reindex(pd.MultiIndex.from_product(wide.index.levels, names=wide.index.names))
    if full.isna().any(axis=None):
        seed, layer, quantity = full.stack(future_stack=True).isna().idxmax()
        raise BadData(f"there is no value of {quantity!r} at layer {layer!r} of seed {seed}; ranks need all of them.")
    return full.groupby("seed").rank()


def _cube(ranks: pd.DataFrame) -> np.ndarray:
    return ranks.to_numpy().reshape(*(len(level) for level in ranks.index.levels), -1)


def _correlations(x: np.ndarray, v: np.ndarray, w: np.ndarray, given: str = "") -> np.ndarray:
    """r (b, q, q) of all quantities of x (seeds, layers, q) for weights v (b, seeds) and w (b, layers) of sum 1."""
    x = x - x.mean(1, keepdims=True)
    means = np.einsum("bl,slq->bsq", w, x)
    products = np.einsum("slp,slq->slpq", x, x)
    covariance = np.einsum("bs,bl,slpq->bpq", v, w, products, optimize=True)
    covariance = covariance - np.einsum("bs,bsp,bsq->bpq", v, means, means, optimize=True)
    spread = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2).clip(0))
    spread = np.where(spread > 1e-9, spread, np.nan)
    r = np.clip(covariance / (spread[:, :, None] * spread[:, None, :]), -1, 1)
    return partial_correlation(r, r[:, :, -1:], r[:, -1:, :]) if given else r


def _interval(rho: np.ndarray, drawn: np.ndarray, n: int, freedom: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    inside = np.abs(rho) < 1 - 1e-9
    z = np.arctanh(np.where(inside, rho, np.nan))
    deviation = np.arctanh(np.clip(drawn, -1 + 1e-9, 1 - 1e-9)).std(0)
    reach = t.ppf((1 + level) / 2, freedom) * deviation * np.sqrt((n + 1) / (n - 1))
    return np.tanh(z - reach), np.tanh(z + reach)
