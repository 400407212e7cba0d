import copy
import math

import pytest
import torch
from torch import nn

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.attention import at, at_gradient
from reptrans.errors import UnknownName
from reptrans.matching import attention, norm_l2, tapped
from reptrans.training import Plan


def total(pair_method, maps):
    """The weighted sum of a recipe's three matches on the stored maps."""
    found = 0.0
    for k, match in enumerate(pair_method.stages[0].matches, start=1):
        t, s = match.teacher_transform(maps[f"t{k}"]), match.student_transform(maps[f"s{k}"])
        found = found + match.weight * match.distance(t, s)
    return found


def test_both_forms_are_those_of_public_implementations(pair, maps):
    for k in (1, 2, 3):
        maps[f"s{k}"].requires_grad_()
    authors = total(at(pair, like="authors", beta=1.0), maps)
    assert authors.item() == pytest.approx(0.014327766373753548, rel=1e-5)
    gradients = torch.autograd.grad(authors, [maps[f"s{k}"] for k in (1, 2, 3)])
    for k, gradient in enumerate(gradients, start=1):
        torch.testing.assert_close(gradient, maps[f"grad official.AT s{k}"], rtol=1e-4, atol=1e-9)
    assert total(at(pair), maps).item() == pytest.approx(1.508642, rel=1e-5)


@pytest.mark.parametrize(
    ("power", "reduce", "expected"),
    [(2, "sum", 0.47445523738861084), (1, "sum", 0.2606265), (2, "max", 0.6462677), (4, "sum", 0.9147271)],
)
def test_the_paper_form_at_the_second_layer(maps, power, reduce, expected):
    transform = attention(power, reduce)
    found = norm_l2(transform(maps["t2"].double()), transform(maps["s2"].double()))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_authors_form_is_the_square_over_the_number_of_positions(pair):
    t, s = (attention()(torch.rand(1, 3, 4, 4, dtype=torch.float64)) for _ in range(2))
    (match, *_) = at(pair, like="authors").stages[0].matches
    assert match.distance(t, s).item() == pytest.approx(norm_l2(t, s).item() ** 2 / 16)
    assert match.weight == 1000 and at(pair, beta=3.0).stages[0].matches[0].weight == 1.5


def test_signs_order_and_scale_do_not_count_and_disjoint_maps_are_farthest():
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    other = -2.5 * x[:, [2, 0, 3, 1]]
    assert norm_l2(attention()(x), attention()(other)).item() == pytest.approx(0, abs=1e-7)
    left, right = torch.zeros(2, 1, 1, 2, 4, dtype=torch.float64)
    left[..., :2], right[..., 2:] = 1, 1
    assert norm_l2(attention()(left), attention()(right)).item() == pytest.approx(math.sqrt(2))


def test_the_gradient_form_matches_the_gradients_of_two_linear_networks(pair):
    (match,) = at_gradient(pair, beta=3.0).stages[0].matches
    assert match.weight == 1.5
    x, y = torch.randn(4, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double() for _ in range(2)]
    j_t, j_s = (tapped(net, x, y, [match.teacher])[match.teacher] for net in nets)
    closed = [(net(x).softmax(1) - nn.functional.one_hot(y, 3)) @ net[1].weight for net in nets]
    expected = (closed[0] - closed[1]).norm(dim=1).mean()
    assert match.distance(j_t, j_s).item() == pytest.approx(expected.item())


def test_the_gradient_form_brings_gradients_nearer_than_the_task_alone(pair):
    plan, teacher = Plan(epochs=6, lr=0.05, precision="float64"), pair.teachers[0]
    batch, apart = next(iter(teacher.loader.plain())), []
    for beta in (0.0, 20.0):
        student, _ = distill(copy.deepcopy(pair.student), teacher, at_gradient(pair, beta=beta), teacher.loader, plan)
        nets = (teacher.net, student.eval())
        found = [tapped(net, batch.images, batch.labels, ["grad:loss"])["grad:loss"] for net in nets]
        apart.append(norm_l2(*found).item())
    assert apart[1] < 0.8 * apart[0]


def test_kd_can_stand_beside_it_and_other_variants_are_refused(pair):
    losses = at(pair, with_kd=True).stages[0].losses
    assert losses[0].weight == 0.1 and losses[1].student == "out" and len(losses) == 5
    with pytest.raises(UnknownName, match="Possible: paper, authors"):
        at(pair, like="kdlib")
