"""One rule for every seed that a user gives: a whole number from 0 to 2^63 - 1, or one clear error."""

import pytest
import torch

from reptrans import Plan, build, load_dataset
from reptrans.errors import BadValue
from reptrans.inputs import noise
from reptrans.randomness import drawing, generator_of
from reptrans.similarity import calibrate
from reptrans.similarity.agreement import error_consistency_interval

DIGITS = load_dataset("digits", limit=4)
ROWS = torch.arange(80.0).view(20, 4).sin()
DOORS = {
    "Plan": lambda seed: Plan(seed=seed),
    "build": lambda seed: build("cnn3_w2", in_channels=1, image_size=8, seed=seed),
    "loader": lambda seed: DIGITS.loader("train", 4, shuffle=True, seed=seed),
    "limit": lambda seed: DIGITS.train.limit(2, seed),
    "validation": lambda seed: DIGITS.with_validation(2, seed),
    "noise": lambda seed: noise(2, (1, 4, 4), seed=seed),
    "calibrate": lambda seed: calibrate(ROWS, ROWS.cos(), null=20, seed=seed),
    "errors": lambda seed: error_consistency_interval(ROWS, ROWS.cos(), torch.arange(20) % 4, seed=seed),
    "drawing": lambda seed: drawing(seed).__enter__(),
}


@pytest.mark.parametrize("seed", ["a", 1.5, True, -1, 2**63])
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_seed(door, seed):
    with pytest.raises(BadValue, match=r"seed is .*; it must be (a whole number from 0 on|below 2\^63)"):
        DOORS[door](seed)


@pytest.mark.parametrize("door", [door for door in DOORS if door != "drawing"])
def test_the_largest_seed(door):
    DOORS[door](2**63 - 2)


def test_a_generator_begins_at_its_seed():
    assert torch.equal(torch.rand(3, generator=generator_of(5)), torch.rand(3, generator=generator_of(5)))
    assert not torch.equal(torch.rand(3, generator=generator_of(5)), torch.rand(3, generator=generator_of(6)))
