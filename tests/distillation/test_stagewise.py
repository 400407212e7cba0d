import copy

import pytest
import torch

from reptrans.distillation.distill import distill
from reptrans.distillation.losses import moving, resolve
from reptrans.distillation.method import Method
from reptrans.distillation.methods.values import sskd
from reptrans.matching import CrossEntropy
from reptrans.training import Plan

PLAN = Plan(epochs=8, lr=0.05, precision="float64")
LAYERS = ({"conv1", "bn1"}, {"conv2", "bn2"}, {"conv3", "bn3"}, {"fc"})


def test_a_stage_for_every_group_and_one_for_the_head(pair):
    stages = sskd(pair, share=0.6, head_plan={"lr": 0.5}).stages
    assert [stage.train for stage in stages] == ["new"] * 4
    assert [stage.share for stage in stages] == pytest.approx([0.2, 0.2, 0.2, 1])
    assert [match.student for stage in stages for match in stage.losses[:1] if match != CrossEntropy()] == [
        "relu1", "relu2", "relu3",
    ]  # fmt: skip
    assert stages[-1].losses == [CrossEntropy()] and stages[-1].plan == {"lr": 0.5}


def test_after_each_stage_all_outside_it_is_the_same_to_the_bit(pair):
    loader, before = pair.teachers[0].loader, copy.deepcopy(pair.student.state_dict())
    for k in range(1, 5):
        student, method = copy.deepcopy(pair.student), sskd(pair)
        distill(student, pair.teachers, Method("sskd", method.stages[:k]), loader, PLAN)
        now = student.state_dict()
        changed = {name.split(".")[0] for name, value in now.items() if not torch.equal(value, before[name])}
        assert changed == LAYERS[k - 1], k
        assert all(
            not torch.equal(now[f"bn{k}.{b}"], before[f"bn{k}.{b}"]) for b in ("running_mean", "running_var") if k < 4
        )
        before = now


def test_gradients_stay_inside_the_stage(pair):
    moved, batch = set(), next(iter(pair.teachers[0].loader))
    for stage, layers in zip(sskd(pair).stages, LAYERS, strict=True):
        objective = resolve(stage, pair.student, pair.teachers, batch)
        objective.moves = set(moving(objective, batch, moved))
        objective.train()
        names = {p: name for name, p in pair.student.named_parameters()}
        own = [p for p in objective.moves if p in names]
        assert {names[p].split(".")[0] for p in own} == layers
        terms, _ = objective(batch)
        sum(terms.values()).backward()
        reached = {names[p].split(".")[0] for p in names if p.grad is not None}
        assert not reached & set().union(*LAYERS[LAYERS.index(layers) + 1 :])
        moved |= set(own)


def test_no_weight_stands_before_a_loss_and_equal_networks_have_0(twins):
    batch = next(iter(twins.teachers[0].loader))
    for stage in sskd(twins).stages[:-1]:
        (match,) = stage.losses
        assert match.weight == 1
        objective = resolve(stage, twins.student, twins.teachers, batch).eval()
        (term,) = objective(batch)[0].values()
        assert term.item() == pytest.approx(0, abs=1e-25)


def test_every_stage_lowers_its_loss(pair):
    _, rows = distill(pair.student, pair.teachers, sskd(pair), pair.teachers[0].loader, Plan(
        epochs=24, lr=0.1, precision="float64"))  # fmt: skip
    for name in [*rows.filter(like="squared"), "cross_entropy"]:
        values = rows[name].dropna()
        assert values.iloc[-1] < values.iloc[0]
