"""What the literature says of inverted layers, put to the rows of `autoencode`: a number each, and whether it held."""

from collections.abc import Iterator

import pandas as pd

EXACT, ALIKE, SMALL, LARGE = 60.0, 0.5, 0.1, 0.5  # dB of PSNR; correlation; relative error D; spread of starts


def claims(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each claim and network: claim, network, measured (in words), held.

    The layers are taken in the order in which the rows name them; "deepest" is the last of them. Thresholds: a copy is
    exact from 60 dB, a picture is wrong below correlation 0.5, D is small below 0.1, a spread large above 0.5.
    Source: the claims of Badger's pages on depth and layerwise autoencoding (blog, 2021 to 2023).
    """
    found = [entry for name, one in rows.groupby("network", sort=False) for entry in _of_one(name, one)]
    parts = dict(list(rows.groupby("network", sort=False)))
    for other in ("as built", "calibrated"):
        if {"trained", other} <= set(parts):
            found += _of_training(parts["trained"], parts[other], other)
    return pd.DataFrame(found, columns=["claim", "network", "measured", "held"])


def _of_one(name: str, rows: pd.DataFrame) -> Iterator[tuple]:
    layers = list(pd.unique(rows["layer"]))
    first, last = (rows[rows["layer"] == layer] for layer in (layers[0], layers[-1]))
    least = first["psnr"].min()
    yield "the first layer is inverted exactly", name, f"least PSNR {min(least, 99):.0f} dB", least >= EXACT
    t = rows.groupby("layer", sort=False)["triviality"].mean()
    yield "depth removes copying", name, f"T from {t.iloc[0]:.2f} to {t.iloc[-1]:.2f}", t.iloc[-1] < t.iloc[0] - 0.1
    passed = ((last["m_g_over_m_r"] < 1) & (last["correlation"] < ALIKE)).mean()
    yield "at the deepest layer m_g < m_r, yet the picture is wrong", name, f"{passed:.0%} of the rows", passed > 0.5
    d, spread = last["relative_error"].mean(), last["spread"].mean()
    lost = d < SMALL and spread > LARGE
    yield "the deepest layer is not unique", name, f"D {d:.2f}, spread {spread:.2f}", lost
    rising = (rows["mse_over_least"] > 1.1).mean()
    yield "m_i rises at the end of the descent", name, f"{rising:.0%} of the rows", rising > 0.5


def _of_training(trained: pd.DataFrame, other: pd.DataFrame, name: str) -> Iterator[tuple]:
    by_layer = [rows.groupby("layer", sort=False) for rows in (trained, other)]
    gain = by_layer[0]["triviality"].mean() - by_layer[1]["triviality"].mean()
    beyond = [rows["label_agreement"].mean() - rows["blur_agreement"].mean() for rows in (trained, other)]
    against = f"trained - {name}"
    yield "training keeps more of the image", against, f"T {gain.mean():+.2f}, mean over layers", gain.mean() > 0.05
    if pd.notna(beyond[0]):
        told = f"{beyond[0]:.2f} and {beyond[1]:.2f} of the labels beyond a blur"
        yield "training keeps more of what the image means", against, told, beyond[0] > beyond[1] + 0.05
