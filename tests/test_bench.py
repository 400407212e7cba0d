"""The protocol of comparisons: intervals against SciPy and the bootstrap, Holm by hand, error rates by simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reptrans.bench import check_grid, chosen, effect, holm, verdicts
from reptrans.errors import BadData, BadValue, UnknownName

METHODS = ["kd", "at", "sp", "rkd", "nst", "ofd", "pkt", "vid"]


def table(rng: np.random.Generator, seeds: int, effects: dict[str, float], sd: float = 0.02) -> pd.DataFrame:
    """Scores of plain and METHODS, whose paired differences have this sd and these means in units of it."""
    plain = rng.normal(0.8, 0.03, seeds)
    scores = {name: plain + sd * rng.normal(effects.get(name, 0.0), 1, seeds) for name in METHODS}
    return pd.DataFrame({"plain": plain} | scores)


def said(scores: pd.DataFrame, **more) -> pd.Series:
    found, note = verdicts(scores, {name: "plain" for name in METHODS}, control=("kd", "plain"), **more)
    assert not note
    return found.set_index("method")["verdict"]


def test_the_interval_is_students():
    x = np.random.default_rng(0).normal(0.01, 0.02, 12)
    found = effect(x)
    known = stats.ttest_1samp(x, 0)
    low, high = known.confidence_interval(0.95)
    assert (found.mean, found.p) == (pytest.approx(x.mean()), pytest.approx(known.pvalue))
    assert (found.low, found.high, found.sd) == (*map(pytest.approx, (low, high)), pytest.approx(x.std(ddof=1)))
    assert found.p_below(0.02) == pytest.approx(stats.ttest_1samp(x, 0.02, alternative="less").pvalue)


def test_the_bootstrap_agrees():
    x = np.random.default_rng(1).normal(0.01, 0.02, 40)
    known = stats.bootstrap((x,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    found = effect(x)
    assert (found.low, found.high) == (pytest.approx(known.low, abs=1e-3), pytest.approx(known.high, abs=1e-3))


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    found = [effect(rng.normal(0.3, 1, 5)) for _ in range(2000)]
    inside = np.mean([each.low < 0.3 < each.high for each in found])
    assert inside == pytest.approx(0.95, abs=0.015)


def test_one_seed_has_no_interval_and_equal_differences_are_signs():
    assert math.isnan(effect([0.3]).low) and math.isnan(effect([0.3]).p)
    assert effect([0.25] * 4).p == 2**-3 and effect([0.0] * 4).p == 1
    with pytest.raises(BadData, match="finite"):
        effect([0.1, math.nan])
    with pytest.raises(BadData, match="at least one"):
        effect([])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, math.nan, 0.6])[0] == pytest.approx(1.0)
    assert math.isnan(holm([0.9, math.nan])[1])


def test_without_an_effect_something_is_said_in_one_table_of_twenty():
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(1000):
        others = said(table(rng, 8, {"kd": 6.0})).drop("kd")
        wrong += others.isin(["held", "contradicted"]).any()
    assert wrong <= 50


@pytest.mark.parametrize("sign", [1, -1])
def test_an_effect_of_one_and_a_half_sd_is_found(sign):
    rng = np.random.default_rng(4)
    wanted = "held" if sign > 0 else "contradicted"
    found = [said(table(rng, 16, {"kd": 6.0, "at": sign * 1.5}))["at"] == wanted for _ in range(300)]
    assert np.mean(found) >= 0.8


def test_four_verdicts():
    rng = np.random.default_rng(5)
    base = rng.normal(0.8, 0.03, 400)
    gains = {"kd": 0.03, "at": -0.02, "sp": 0.0, "rkd": 0.03, "nst": 0.004, "ofd": 0.0}
    scores = pd.DataFrame({"plain": base} | {name: base + rng.normal(m, 0.02, 400) for name, m in gains.items()})
    scores["ofd"] = base + rng.normal(0.0, 0.3, 400)
    over = dict.fromkeys(gains, "plain")
    found, note = verdicts(scores, over, published={"kd": 0.01, "rkd": 0.1, "nst": 0.02}, control=("kd", "plain"))
    assert note == ""
    assert dict(zip(found["method"], found["verdict"], strict=True)) == {
        "kd": "held",
        "at": "contradicted",
        "sp": "small",
        "rkd": "contradicted",  # above 0, but below half of what is published
        "nst": "contradicted",
        "ofd": "not decided",
    }
    assert found["published"].tolist()[:1] == [0.01] and found["better"].between(0, 400).all()


def test_without_its_control_a_table_says_nothing():
    scores = table(np.random.default_rng(6), 16, {"at": 5.0})
    found, note = verdicts(scores, {"at": "plain"}, control=("kd", "plain"))
    assert "kd does not beat plain" in note and set(found["verdict"]) == {""}
    found, note = verdicts(scores.head(1), {"at": "plain"})
    assert "no interval" in note and found["low"].isna().all() and set(found["verdict"]) == {""}
    with pytest.raises(UnknownName, match="no scores of 'att'"):
        verdicts(scores, {"att": "plain"})


def test_the_best_trial_is_chosen_by_its_mean():
    rows = [
        ("at", 0.1, 0.5),
        ("at", 1.0, 0.7),
        ("at", 10.0, 0.7),
        ("kd", 0.1, 0.9),
        ("kd", 1.0, 0.2),
        ("kd", 10.0, 0.2),
    ]
    trials = pd.DataFrame(
        [(m, t, s, v) for m, t, v in rows for s in (0, 1)], columns=["method", "trial", "seed", "score"]
    )
    assert chosen(trials) == {"at": 1.0, "kd": 0.1}
    with pytest.raises(BadData, match="unequal trials"):
        chosen(trials.iloc[1:])
    with pytest.raises(BadData, match="unequal trials"):
        chosen(trials[(trials["method"] != "kd") | (trials["trial"] != 10)])
    with pytest.raises(BadValue, match="at least two different"):
        chosen(trials[trials["trial"] == 1])


@pytest.mark.parametrize("grid", [[], [1.0], [1.0, 1.0], [0.0, 1.0], [1.0, math.inf]])
def test_grids_that_try_nothing(grid):
    with pytest.raises(BadValue, match="at least two different numbers above 0"):
        check_grid(grid)
