import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reptrans.distillation.distill import distill
from reptrans.distillation.method import Method
from reptrans.distillation.methods.values import ab, active, boundary
from reptrans.errors import BadValue, ShapeMismatch, UnknownName
from reptrans.matching import CrossEntropy, Seen, conv1x1_bn, if_needed, tapped
from reptrans.training import Plan

STORED = load_file(Path(__file__).parent.parent / "reference/distillation_stages.safetensors")
T, S = torch.tensor([[2.0, 0.1, -1.0, -0.1]]), torch.tensor([[0.5, 3.0, -3.0, 0.5]])


def test_the_loss_by_hand_with_its_gradient():
    student = S.clone().requires_grad_()
    value = boundary()(T, student)
    value.backward()
    assert value.item() == pytest.approx(2.5)
    assert student.grad.tolist() == [[-1, 0, 0, 3]]


def test_it_is_0_from_the_margin_on_and_nowhere_else():
    t = torch.tensor([[1.0, -1.0, 0.0]])
    assert boundary(0.5)(t, torch.tensor([[0.5, -0.5, -0.5]])).item() == 0
    for student in ([0.49, -0.5, -0.5], [0.5, -0.49, -0.5], [0.5, -0.5, -0.49]):
        assert boundary(0.5)(t, torch.tensor([student])).item() == pytest.approx(1e-4, rel=1e-3)


def test_only_the_teachers_sign_matters_and_0_is_inactive():
    t, s = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert boundary()(t, s) == boundary()(t * 7, s) == boundary()(active(t), s) == boundary()(t.sign() * 1e-9, s)
    assert active(torch.tensor([[-1.0, 0.0, 2.0]])).tolist() == [[0, 0, 1]]
    assert boundary()(torch.zeros(1, 1), torch.tensor([[-1.0]])).item() == 0


def test_it_agrees_with_the_authors_code():
    student = STORED["s2"].double().requires_grad_()
    value = 4 * boundary()(STORED["u2"].double(), student)
    value.backward()
    assert value.item() == pytest.approx(STORED["ab.paper"].item(), rel=1e-9)
    torch.testing.assert_close(student.grad.float(), STORED["ab.grad"], rtol=1e-4, atol=1e-6)


def test_other_shapes_are_refused():
    with pytest.raises(ShapeMismatch):
        boundary()(T, S[:, :2])


def test_the_stages(pair):
    first, second = ab(pair).stages
    assert [match.weight for match in first.matches] == [3e-3 / 4, 3e-3 / 2, 3e-3]
    assert [match.student for match in first.matches] == ["relu1:in", "relu2:in", "relu3:in"]
    assert (first.train, first.teacher, second.train) == ("reached", "batch", "all")
    (match,) = second.losses
    assert match.weight == 9 and match.distance.label == "KL at T=3"
    assert ab(pair, then="task", share=0.2).stages[1].losses == [CrossEntropy()]
    with pytest.raises(UnknownName, match="no second stage 'ce' of ab. .*kd, task"):
        ab(pair, then="ce")
    for margin in (0, -1, float("nan")):
        with pytest.raises(BadValue, match="above 0"):
            boundary(margin)


def test_a_connector_stands_only_where_channels_differ(pair, twins):
    def made(given):
        batch = next(iter(given.teachers[0].loader))
        own = [tapped(net.eval(), batch.images, None, ["bn1"])["bn1"] for net in (given.student, given.teacher)]
        return if_needed(conv1x1_bn()).make(Seen((own[0],), (own[1],), own[1], iter))

    assert isinstance(made(twins), nn.Identity) and isinstance(made(pair), nn.Sequential)


def test_the_first_stage_raises_agreement_and_leaves_the_head(twins):
    loader, plan = twins.teachers[0].loader, Plan(epochs=40, lr=0.1, precision="float64")
    for norm in (twins.student.bn1, twins.student.bn3):
        norm.bias.data.sub_(1.0)  # so that it does not begin in agreement
    batch = next(iter(loader))

    def agreement():
        taps = ["bn1", "bn3"]
        # With the batch's statistics, as the stage compares them; in copies, so that nothing is updated.
        t, s = (
            tapped(copy.deepcopy(net).train(), batch.images, None, taps, keep_graph=False)
            for net in (twins.teacher, twins.student)
        )
        return [((t[tap] > 0) == (s[tap] > 0)).double().mean().item() for tap in taps]

    before, head = agreement(), twins.student.fc.weight.clone()
    method = ab(twins, scale=0.1)
    distill(twins.student, twins.teachers, Method("ab", method.stages[:1]), loader, plan)
    assert torch.equal(twins.student.fc.weight, head)
    assert all(after > first + 0.05 for first, after in zip(before, agreement(), strict=True))
