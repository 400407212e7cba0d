import pytest
import torch

from reptrans.distillation.methods.answers import kd, logits, plain
from reptrans.matching import CrossEntropy, softened_kl


def test_the_softened_loss_is_that_of_a_public_implementation(maps):
    s = maps["zs"].requires_grad_()
    found = 16 * softened_kl(4)(maps["zt"], s)
    assert found.item() == pytest.approx(9.10719108581543, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, s)
    torch.testing.assert_close(gradient, maps["grad repdistiller.KD(T=4) zs"], rtol=1e-4, atol=1e-6)


def test_for_high_temperatures_it_is_half_the_squared_difference_of_centred_logits_over_k():
    t, s = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    hot = 1e4
    centred = (t - t.mean(1, keepdim=True)) - (s - s.mean(1, keepdim=True))
    expected = centred.square().sum(1).mean() / (2 * 5)
    assert (hot**2 * softened_kl(hot)(t, s)).item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_recipe_weighs_both_parts_and_the_temperature(pair):
    (stage,) = kd(pair, temperature=3, weight=0.7, task=0.2).stages
    task, match = stage.losses
    assert isinstance(task, CrossEntropy) and task.weight == 0.2
    assert match.weight == pytest.approx(0.7 * 9)
    assert logits(2.0, lambda progress: progress).weight_at(0.25) == 1.0
    assert [type(loss) for loss in plain(pair).stages[0].losses] == [CrossEntropy]
