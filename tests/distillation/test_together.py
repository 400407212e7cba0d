"""Students side by side end as they would alone: every method, its stages, its connectors, weights of their own."""

import copy

import pytest
import torch

from reptrans.distillation import METHODS
from reptrans.distillation.distill import Member, distill, distill_together
from reptrans.errors import BadValue
from reptrans.training import Plan

from .conftest import network

PLAN = Plan(epochs=2, lr=0.02, precision="float64", portable=True)


def members(pair, count: int = 3) -> list[Member]:
    """Students with first weights, orders, weights of losses and labels of their own under the pair's teacher."""
    found = []
    for k in range(count):
        loader = pair.teachers[0].loader.over(pair.teachers[0].loader.split, seed=k)
        labelled = torch.rand(60, generator=torch.Generator().manual_seed(k)) < 0.5
        found.append(Member(network(2, seed=20 + k), pair.teachers, loader, 7 + k, (0.1, 1.0, 3.0)[k], labelled))
    return found


@pytest.mark.parametrize("name", METHODS)
def test_side_by_side_each_ends_as_alone(name, pair):
    method, group = METHODS[name](pair), members(pair)
    alone = [copy.deepcopy(m.student) for m in group]
    watch = {"seen": pair.teachers[0].loader.plain()}
    together = distill_together(group, method, PLAN, watch=watch)
    for member, student, (side, rows) in zip(group, alone, together, strict=True):
        plan = Plan(epochs=2, lr=0.02, precision="float64", portable=True, seed=member.seed)
        student, known = distill(
            student, pair.teachers, method, member.loader, plan, factor=member.factor, labelled=member.labelled,
            watch=watch,
        )  # fmt: skip
        assert list(rows) == list(known)
        numbers = known.select_dtypes("number").columns
        torch.testing.assert_close(
            torch.tensor(rows[numbers].to_numpy()), torch.tensor(known[numbers].to_numpy()), rtol=1e-6, atol=1e-7,
            equal_nan=True,
        )  # fmt: skip
        for key, value in student.state_dict().items():
            torch.testing.assert_close(side.state_dict()[key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_what_would_be_common_is_refused(pair, tmp_path):
    method = METHODS["kd"](pair)
    with pytest.raises(BadValue, match="no common clip"):
        distill_together(members(pair), method, Plan(epochs=1, precision="float64", clip=1.0))
    with pytest.raises(BadValue, match="no folder"):
        distill_together(members(pair), method, PLAN, folder=tmp_path)
