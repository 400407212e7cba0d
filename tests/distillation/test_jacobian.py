import pytest
import torch
from torch import nn

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.attention import jacobian
from reptrans.matching import l2, tapped, unit
from reptrans.training import Plan


def test_matching_affine_networks_under_noise_is_matching_plus_the_jacobian_term():
    """E ||T(x + xi) - S(x + xi)||^2 = ||T - S||^2 + sigma^2 ||J_t - J_s||_F^2, by the mean over many draws."""
    draw = torch.Generator().manual_seed(0)
    teacher, student = (nn.Linear(6, 4).double() for _ in range(2))
    with torch.no_grad():
        for net in (teacher, student):
            net.weight.copy_(torch.randn(4, 6, dtype=torch.float64, generator=draw))
            net.bias.copy_(torch.randn(4, dtype=torch.float64, generator=draw))
        x, sigma = torch.randn(1, 6, dtype=torch.float64, generator=draw), 0.5
        exact = l2(teacher(x), student(x)) + sigma**2 * (teacher.weight - student.weight).square().sum()
        noisy = x + sigma * torch.randn(400_000, 6, dtype=torch.float64, generator=draw)
        assert l2(teacher(noisy), student(noisy)).item() == pytest.approx(exact.item(), rel=5e-3)


def test_the_match_is_of_unit_jacobians_of_the_labels_logit(pair):
    kd, match = jacobian(pair).stages[0].matches
    x, y = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double() for _ in range(2)]
    j_t, j_s = (tapped(net, x, y, ["grad:logit"])["grad:logit"] for net in nets)
    found = match.distance(match.teacher_transform(j_t), match.student_transform(j_s))
    rows = [net[1].weight[y] / net[1].weight[y].norm(dim=1, keepdim=True) for net in nets]
    assert found.item() == pytest.approx((rows[0] - rows[1]).square().sum(1).mean().item())
    assert kd.student == "out"


def test_scaling_all_logits_of_a_network_changes_nothing():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    before = unit(tapped(net, x, y, ["grad:logit"])["grad:logit"])
    with torch.no_grad():
        net[3].weight.mul_(7), net[3].bias.mul_(7)
    torch.testing.assert_close(unit(tapped(net, x, y, ["grad:logit"])["grad:logit"]), before)


@pytest.mark.parametrize("at_attention", [False, True])
def test_training_lowers_it(pair, at_attention):
    plan = Plan(epochs=6, lr=0.02, precision="float64", clip=5.0)
    method = jacobian(pair, at_attention=at_attention)
    _, rows = distill(pair.student, pair.teachers, method, pair.teachers[0].loader, plan)
    columns = [name for name in rows if "grad:" in name]
    assert len(columns) == (3 if at_attention else 1)
    assert rows[columns].sum(axis=1).iloc[-1] < rows[columns].sum(axis=1).iloc[0]
