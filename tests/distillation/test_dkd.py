import pytest
import torch
from torch.nn import functional as F

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.answers import apart, dkd, label_or_not, others, rising
from reptrans.errors import BadValue, ShapeMismatch
from reptrans.matching import softened_kl
from reptrans.training import Plan

DRAW = torch.Generator().manual_seed(0)
T, S = 3 * torch.randn(2, 6, 5, dtype=torch.float64, generator=DRAW)
Y = torch.tensor([0, 1, 2, 3, 4, 2])


def parts(t, s, y=Y, temperature=4.0):
    """TCKD and NCKD by the package."""
    return [apart(f, temperature)(t, (s, y)) for f in (label_or_not(temperature), others)]


def by_probabilities(t, s, y, temperature):
    """The same from the probabilities themselves, image by image."""
    tckd = nckd = 0.0
    for p, q, k in zip(F.softmax(t / temperature, 1), F.softmax(s / temperature, 1), y, strict=True):
        tckd += p[k] * (p[k] / q[k]).log() + (1 - p[k]) * ((1 - p[k]) / (1 - q[k])).log()
        for i in range(len(p)):
            if i != k:
                of_p, of_q = p[i] / (1 - p[k]), q[i] / (1 - q[k])
                nckd += of_p * (of_p / of_q).log()
    return tckd / len(y), nckd / len(y)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_parts_are_those_of_the_probabilities(temperature):
    for found, expected in zip(parts(T, S, Y, temperature), by_probabilities(T, S, Y, temperature), strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_first_and_the_second_times_what_the_teacher_leaves_to_others(temperature):
    """KL(p_t || p_s) = TCKD + (1 - p_y) NCKD, of each image."""
    for k in range(6):
        t, s, y = T[k : k + 1], S[k : k + 1], Y[k : k + 1]
        left = 1 - F.softmax(t / temperature, 1)[0, y]
        tckd, nckd = parts(t, s, y, temperature)
        assert softened_kl(temperature)(t, s).item() == pytest.approx((tckd + left * nckd).item(), rel=1e-10)


def test_each_part_sees_its_own_and_neither_what_all_logits_have_in_common():
    own = F.one_hot(Y, 5).double()
    tckd, nckd = parts(T, S)
    assert [x.item() for x in parts(T, S + 3)] == pytest.approx([tckd.item(), nckd.item()], rel=1e-10)
    more, same = parts(T, S + 2 * own)
    assert same.item() == pytest.approx(nckd.item(), rel=1e-12) and abs(more - tckd) > 1e-3
    # The others in another order, with their sum as it was.
    swapped = others(S, Y).flip(1)
    turned = S.clone()
    turned[~own.bool()] = swapped.flatten()
    same, more = parts(T, turned)
    assert same.item() == pytest.approx(tckd.item(), rel=1e-10) and abs(more - nckd) > 1e-3


def test_equal_answers_are_at_0_and_logits_far_apart_stay_finite():
    assert [x.item() for x in parts(T, T)] == pytest.approx([0, 0], abs=1e-14)
    s = (1e4 * S).requires_grad_()
    total = sum(parts(1e4 * T, s))
    total.backward()
    assert total.isfinite() and s.grad.isfinite().all()


def test_the_gradient_of_the_second_part_is_that_of_a_softmax_over_the_others():
    s = S.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(parts(T, s, temperature=1.0)[1], s)
    expected = (F.softmax(others(S, Y), 1) - F.softmax(others(T, Y), 1)) / 6
    torch.testing.assert_close(others(gradient, Y), expected)
    assert gradient.gather(1, Y[:, None]).abs().max() == 0


def test_the_recipe_has_the_published_weights_and_their_rise(pair):
    (stage,) = dkd(pair).stages
    task, target, rest = stage.losses
    assert task.weight == 1 and [m.title for m in stage.matches] == ["dkd target", "dkd others"]
    assert [m.weight_at(0.5) for m in (target, rest)] == [16, 8 * 16]
    assert [target.weight_at(p / 240) for p in (0, 5, 20, 239)] == pytest.approx([0, 4, 16, 16])
    assert dkd(pair, warmup=0, alpha=2, temperature=3).stages[0].matches[0].weight == 18


def test_no_gradient_reaches_the_teacher():
    t, s = T.clone().requires_grad_(), S.clone().requires_grad_()
    sum(parts(t, s)).backward()
    assert t.grad is None and s.grad.abs().max() > 0


def test_a_short_training_lowers_both_terms(pair):
    plan = Plan(epochs=8, optimiser="adam", lr=0.05, precision="float64")
    _, rows = distill(pair.student, pair.teachers, dkd(pair, warmup=0), pair.teachers[0].loader, plan)
    assert (rows[["dkd target", "dkd others"]].iloc[-1] < rows[["dkd target", "dkd others"]].iloc[0]).all()


def test_bad_options_and_shapes_are_refused(pair):
    with pytest.raises(BadValue, match="warmup is 1; it is a share of the epochs, from 0 on and below 1"):
        dkd(pair, warmup=1)
    with pytest.raises(BadValue, match="temperature is 0"):
        dkd(pair, temperature=0)
    with pytest.raises(ShapeMismatch, match=r"answers are \(6, 5\) and the student's \(6, 4\).*the same classes"):
        parts(T, S[:, :4])
    with pytest.raises(ShapeMismatch, match=r"logits are \(6, 5\) and labels \(6, 5\)"):
        others(S, F.one_hot(Y, 5))
    assert rising(3.0, 0) == 3.0
