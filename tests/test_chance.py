"""Noise is beyond chance as rarely as it is said to be; what grows with networks is told with its interval."""

import numpy as np
import pandas as pd
import pytest

from reptrans.errors import BadData, BadValue, UnknownName
from reptrans.experiments.chance import SIZES, VALUES, ChanceRun, drawn, false_alarms, growth, with_size

SMALL = {"measures": "linear_cka,mutual_knn,cca_mean", "features": "3,60", "repeats": 12, "side": 2, "noise_orders": 39,
         "models": "cnn3_w2,cnn3_w4,cnn5_w2,cnn5_w4", "images": 40, "layers": 3, "orders": 20, "seeds": 3, "limit": 10,
         "train_epochs": 1}  # fmt: skip


def test_false_alarms_are_shares_and_nothing_is_said_where_a_measure_refuses(tmp_path):
    rows = false_alarms(ChanceRun(**SMALL), tmp_path.joinpath).set_index(["measure", "features"])
    assert rows["d / n"].to_list() == [3 / 40, 60 / 40] * 3
    assert rows.loc[("cca_mean", 60), ["alone", "searched"]].isna().all()
    others = rows.drop(("cca_mean", 60))
    assert others[["alone", "searched"]].notna().all(axis=None) and (others["alone"] < 0.25).all()
    assert (others["searched"] * 12).round(9).isin(range(13)).all()


def test_finished_lines_of_noise_are_kept(tmp_path, monkeypatch):
    p = ChanceRun(**SMALL)
    rows = false_alarms(p, tmp_path.joinpath)
    monkeypatch.setattr("reptrans.experiments.chance.compare", None)  # nothing is compared again
    pd.testing.assert_frame_equal(false_alarms(p, tmp_path.joinpath), rows)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPTRANS_DATA", str(tmp_path_factory.mktemp("chance")))
        p = ChanceRun(**SMALL | {"measures": "linear_cka,procrustes_angular"})
        yield growth(p, p.load(), tmp_path_factory.mktemp("kept").joinpath)


def test_growth_has_a_row_for_each_size_pair_and_measure(rows):
    assert len(rows) == 4 * 3 * 2 and set(rows["size"]) == set(SIZES)
    cka, angle = (rows[rows["measure"] == name] for name in ("linear_cka", "procrustes_angular"))
    assert cka["raw"].between(0, 1).all() and (cka["chance"] < cka["raw"]).all()
    assert (angle["raw"] < 0).all() and (angle["chance"] < angle["raw"]).all()  # distances, negated
    assert rows["beyond chance"].between(0, 1).all()


def test_what_width_and_depth_add():
    values = dict(zip(SIZES, (1.0, 3.0, 2.0, 8.0), strict=True))
    rows = pd.DataFrame([(size, seed, "rsa", v + 0.1 * seed * (size == "deep, wide"), 0.0, 0.0)
                         for size, v in values.items() for seed in range(3)],
                        columns=["size", "seed", "measure", "raw", "chance", "beyond chance"])  # fmt: skip
    table = with_size(rows).set_index(["of", "value"])
    # Wide - narrow is 2 and 6, deep - shallow 1 and 5; the last grows by 0.1 a seed.
    assert table.loc[("width", "raw"), "added"] == pytest.approx(4 + 0.05)
    assert table.loc[("depth", "raw"), "added"] == pytest.approx(3 + 0.05)
    assert table.loc[("width", "raw"), "low"] < 4.05 < table.loc[("width", "raw"), "high"]
    assert np.allclose(table.loc[("width", "chance"), ["added", "low", "high"]].astype(float), 0)


def test_what_does_not_fit_is_refused(tmp_path):
    for change, error, message in (
        ({"models": "cnn3_w2,cnn3_w4"}, BadValue, "models are four names"),
        ({"features": "3,many"}, BadValue, "features are whole numbers from 1 on"),
        ({"orders": 0}, BadValue, "says nothing of chance"),
        ({"noise_orders": 10}, BadValue, "from 20 to 100,000"),
        ({"measures": "cka"}, UnknownName, "no measure 'cka'"),
    ):
        with pytest.raises((error, ValueError), match=message):
            ChanceRun(**SMALL | change)
    p = ChanceRun(**SMALL | {"models": "cnn3_w2,cnn3_w4,cnn5_w2,nothing"})
    with pytest.raises(UnknownName, match="nothing"):
        growth(p, p.load(), tmp_path.joinpath)
    p = ChanceRun(**SMALL | {"measures": "cca_mean", "models": "cnn3_w2,cnn3_w4,cnn5_w2,cnn5_w16"})
    with pytest.raises(BadData, match="more examples than features"):
        growth(p, p.load(), tmp_path.joinpath)
    assert not list(tmp_path.iterdir())  # before anything was trained


def test_a_figure_shows_no_values_without_an_end_and_of_many_measures_what_is_beyond_chance():
    def table(*measures):
        return pd.DataFrame([(name, value) for name in measures for value in VALUES], columns=["measure", "value"])

    assert len(drawn(table("rsa", "linear_cka"))) == 6
    assert drawn(table("rsa", "rsm_frobenius"))["value"].to_list() == [*VALUES, "beyond chance"]
    many = "rsa linear_cka cca_mean svcca gulp mutual_knn cknna knn_jaccard rank_similarity".split()
    assert drawn(table(*many))["value"].to_list() == ["beyond chance"] * 9


def test_a_pair_that_is_kept_is_that_of_the_same_activations(tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path / "data"))
    p = ChanceRun(**SMALL | {"measures": "linear_cka"})
    first, again = (growth(p, p.load(), (tmp_path / "kept").joinpath) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    other = ChanceRun(**SMALL | {"measures": "linear_cka", "images": 60})
    assert not growth(other, p.load(), (tmp_path / "kept").joinpath)["raw"].equals(first["raw"])
