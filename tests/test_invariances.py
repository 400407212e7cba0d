"""Metamers, STIR and maximum differentiation: by hand on linear networks, and the experiment on small ones."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.experiments.invariances import InvariancesRun, by_kind, invariances, load, lost
from reptrans.inputs import differentiate, metamers, stir

SMALL = {"dataset": "shapes:shape:images=400:difficulty=0", "image_size": 8, "model": "cnn3_w4", "seeds": 1,
         "train_epochs": 3, "images": 24, "steps": 40, "pictures": 2, "tolerance": 0.3}  # fmt: skip


class Part(nn.Module):
    """Images of two pixels -> some of them, as a vector."""

    def __init__(self, *kept):
        super().__init__()
        self.kept = kept

    def forward(self, images):
        return images.flatten(1)[:, self.kept]


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return torch.rand(2, 24, 1, 1, 2, generator=g, dtype=torch.float64) * 0.8 + 0.1


def made(front, pair, **more):
    return metamers(front, *pair, prior=(), steps=400, lr=0.05, **more)


def test_a_metamer_keeps_what_the_network_sees_and_the_start_in_what_it_ignores(pair):
    x, start = pair
    found = made(Part(0), pair)
    assert torch.allclose(found.images[..., 0], x[..., 0], atol=1e-3)
    assert torch.equal(found.images[..., 1], start[..., 1])
    assert found.rows["converged"].all()


def test_what_did_not_converge_is_said(pair):
    found = metamers(Part(0), *pair, prior=(), steps=1, lr=1e-6, tolerance=0.05)
    apart = ((pair[0] - pair[1])[..., 0].abs() / pair[0][..., 0]).flatten()
    assert found.rows["relative_error"].to_numpy() == pytest.approx(apart.numpy(), abs=1e-3)
    assert found.rows["converged"].tolist() == (apart <= 0.05).tolist()


def test_metamers_stay_images(pair):
    x, start = pair
    found = metamers(Part(0), x, start, prior=(lambda images: -100 * images.flatten(1).sum(1),), steps=50)
    assert found.images.min() >= 0 and found.images.max() == 1


def test_stir_is_one_for_the_network_itself_and_for_who_ignores_more_and_nothing_for_who_sees_the_rest(pair):
    x, images = pair[0], made(Part(0), pair).images
    assert stir(Part(0), x, images)["value"] == pytest.approx(1, abs=1e-3)
    rest = stir(Part(1), x, images)
    assert abs(rest["value"]) < 0.2 and rest["p"] > 0.05
    both = stir(Part(0, 1), x, images)["value"]
    assert rest["value"] < both < 0.9
    assert stir(Part(0), x, made(Part(0, 1), pair).images)["value"] == pytest.approx(1, abs=1e-3)  # directed


def test_differentiation_moves_along_what_the_one_ignores_as_far_as_the_ball_goes(pair):
    x = pair[0] * 0 + 0.5
    found = differentiate(Part(0), Part(0, 1), x, radius=0.2, steps=300, lr=0.01)
    assert torch.allclose(found.images[..., 0], x[..., 0], atol=5e-3)
    assert torch.allclose((found.images - x)[..., 1].abs(), torch.tensor(0.2).double(), atol=5e-3)
    assert found.rows["moved"].to_numpy() == pytest.approx(np.full(24, 0.2 / math.sqrt(0.5)), abs=0.02)
    assert (found.rows["relative_error"] < 0.01).all()


def test_one_network_cannot_be_told_from_itself(pair):
    found = differentiate(Part(0, 1), Part(0, 1), pair[0], radius=0.2, steps=300, lr=0.01)
    assert (found.rows["moved"] < 0.02).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: metamers(Part(0), x, x[:3]), ShapeMismatch, "one for each"),
        (lambda x: metamers(Part(0), x, 3 * x), BadValue, "starts range"),
        (lambda x: metamers(Part(0), x, x, tolerance=0), BadValue, "tolerance is 0"),
        (lambda x: differentiate(Part(0), Part(1), x, radius=0), BadValue, "radius is 0"),
        (lambda x: differentiate(Part(0), Part(1), x, radius=1, weight=-1), BadValue, "weight -1"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, words, pair):
    with pytest.raises(error, match=words):
        call(pair[0])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    p = InvariancesRun(**SMALL)
    return p, load(p), invariances(p, load(p), tmp_path_factory.mktemp("networks"))


def test_label_and_cue_agree_where_they_should(found):
    p, data, _ = found
    assert p.kinds == ("shape", "colour")
    assert len(data.agreeing.test) + len(data.conflicting[0]) == len(data.train["shape"].test)
    labels = data.conflicting[1]
    assert not (labels["shape"] == labels["colour"]).any()
    assert torch.equal(data.train["shape"].train.labels, data.train["colour"].train.labels)
    assert not torch.equal(data.train["shape"].train.images, data.train["colour"].train.images)
    assert data.train["shape"].mean == data.train["colour"].mean


def test_starts_are_images_of_another_class_or_noise(found):
    p, data, _ = found
    few = data.agreeing.test.images.double() / 255
    where = [[int((few == image).flatten(1).all(1).nonzero()[0]) for image in images] for images in
             (data.images, data.start)]  # fmt: skip
    labels = data.agreeing.test.labels
    assert not (labels[where[0]] == labels[where[1]]).any()
    grey = load(p.model_copy(update={"start": "noise"})).start
    assert grey.shape == data.start.shape and not torch.equal(grey, data.start)


def test_there_is_a_row_for_each_of_all(found):
    _, _, made = found
    assert made.networks.groupby("network").size().to_dict() == {"shape": 2, "colour": 2}
    assert made.metamers.groupby(["network", "seed"]).size().unique().tolist() == [24]
    assert made.pairs[["front", "end", "cues"]].to_numpy().tolist() == [
        ["shape", "shape", "same"], ["shape", "colour", "different"],
        ["colour", "shape", "different"], ["colour", "colour", "same"],
    ]  # fmt: skip
    assert len(made.differences) == 4 and set(made.differ) == {"shape", "colour"}
    assert made.pairs["plain"].between(0, 1).all()


def test_stir_of_two_is_that_of_their_metamers(found):
    _, data, made = found
    one, other = made.first["shape"], made.first["colour"]
    some = one.converged
    row = made.pairs.query("front == 'shape' and end == 'colour'").iloc[0]
    expected = stir(other.front, data.images[some], one.found.images[some])["value"] if some.sum() >= 20 else math.nan
    assert row["stir_forward"] == pytest.approx(expected, nan_ok=True)
    back = made.pairs.query("front == 'colour' and end == 'shape'").iloc[0]
    assert back["stir_backward"] == pytest.approx(row["stir_forward"], nan_ok=True)


def test_the_same_parameters_give_the_same_rows(found, tmp_path):
    p, data, made = found
    pd.testing.assert_frame_equal(invariances(p, data, tmp_path).pairs, made.pairs)


def test_tables_for_reading():
    rows = [{"seed": s, "front": a, "end": b, "cues": "same" if a == b else "different"}
            | dict.fromkeys(["stitched", "plain", "forward", "backward", "stir_forward", "stir_backward"],
                            0.8 + 0.1 * s - 0.5 * (a != b))
            for s in range(2) for a in "ab" for b in "ab"]  # fmt: skip
    table = by_kind(pd.DataFrame(rows))
    assert table.loc[0, "plain"] == "0.85 [0.21, 1.49]"
    assert lost(pd.DataFrame(rows))["mean"].tolist() == pytest.approx([0.5] * 6)
    assert by_kind(pd.DataFrame(rows[:4])).loc[0, "plain"] == "0.80"
