"""Milestones and warm-up: the rate at every step, what is refused, and the names of files from before both."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from reptrans.errors import BadValue
from reptrans.training import Plan, fit
from reptrans.training.schedule import learning_rate_factor

STEPS = 3
FALLING = Plan(epochs=6, lr=0.5, schedule="milestones", milestones=(2, 3, 5))


def factors(plan):
    return [learning_rate_factor(plan, step, STEPS) for step in range(plan.epochs * STEPS)]


def test_each_milestone_divides_the_rate_by_ten_from_its_epoch_on():
    exponents = [0, 0, 1, 2, 2, 3]
    assert factors(FALLING) == pytest.approx([0.1**e for e in exponents for _ in range(STEPS)], rel=1e-15)


def test_the_published_epochs_are_torchs():
    plan = Plan(epochs=240, lr=0.05, schedule="milestones", milestones=(150, 180, 210))
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    scheduler, expected = torch.optim.lr_scheduler.MultiStepLR(optimiser, [150, 180, 210]), []
    for _ in range(240):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    assert [0.05 * learning_rate_factor(plan, epoch, 1) for epoch in range(240)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "steps", "milestones"])
def test_the_warm_up_multiplies_the_schedules_own_rate(schedule):
    plain = replace(FALLING, schedule=schedule, milestones=(1, 3) if schedule == "milestones" else ())
    expected = [own * min(1, (step + 1) / 6) for step, own in enumerate(factors(plain))]
    assert factors(replace(plain, warmup=2)) == pytest.approx(expected, rel=1e-15)


def test_the_warm_up_of_a_constant_rate_rises_in_equal_steps_to_1_and_stays():
    found = factors(Plan(epochs=3, schedule="constant", warmup=2))
    assert found == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1, 1])


def test_a_training_takes_these_rates():
    net = nn.Linear(2, 2)
    batch = (torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1]))
    plan = Plan(epochs=4, lr=0.5, schedule="milestones", milestones=(2, 3), warmup=1)
    rows = fit(lambda b, progress: ({"x": net(b.images).square().mean()}, {}), net, [batch] * 2, plan)
    assert rows["lr"].tolist() == pytest.approx([0.5, 0.5, 0.05, 0.005])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schedule": "milestones"}, "schedule is 'milestones' and milestones is (): the one needs the other."),
        ({"milestones": (3,)}, "schedule is 'steps' and milestones is (3,): the one needs the other."),
        ({"schedule": "milestones", "milestones": (5, 3)}, "milestones is (5, 3); it must be a tuple of whole numbers"),
        ({"schedule": "milestones", "milestones": (3, 3)}, "that rise, from 1 on and below epochs=30."),
        ({"schedule": "milestones", "milestones": (3, 30)}, "that rise, from 1 on and below epochs=30."),
        ({"schedule": "milestones", "milestones": (0, 3)}, "that rise, from 1 on and below epochs=30."),
        ({"schedule": "milestones", "milestones": (1.5,)}, "milestones is (1.5,); it must be a tuple of whole numbers"),
        ({"schedule": "milestones", "milestones": [3]}, "milestones is [3]; it must be a tuple"),
        ({"warmup": -1}, "warmup is -1; it must be a whole number from 0 on."),
        ({"warmup": 30}, "warmup is 30; it must be below epochs=30."),
        ({"warmup": 2, "schedule": "one_cycle"}, "warmup is 2 and schedule 'one_cycle', which has a rise of its own."),
    ],
)
def test_a_plan_refuses(given, said):
    with pytest.raises(BadValue) as caught:
        Plan(**given)
    assert said in str(caught.value)


def test_where_neither_is_used_the_facts_are_those_of_older_files():
    assert Plan().facts() == {
        "epochs": 30, "optimiser": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4,
        "schedule": "steps", "precision": "float32", "portable": False, "clip": None, "seed": 0,
    }  # fmt: skip
    assert replace(FALLING, warmup=1).facts().items() >= {"milestones": (2, 3, 5), "warmup": 1}.items()
