import pytest
import torch
from torch.nn import functional as F

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.translated import Review, hierarchical_context, levels, review, reviewed
from reptrans.errors import ShapeMismatch
from reptrans.matching import Seen
from reptrans.training import Plan

DRAW = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(3, *shape, dtype=torch.float64, generator=DRAW)


# Three groups and the embedding; of a student with other channels and sides than the teacher.
OF_TEACHER = (draw(6, 8, 8), draw(8, 5, 5), draw(10, 2, 2), draw(12))
OF_STUDENT = (draw(2, 7, 7), draw(3, 4, 4), draw(4, 4, 4), draw(5))


def connector():
    torch.manual_seed(0)
    seen = Seen(OF_STUDENT, OF_TEACHER, levels(*OF_TEACHER), lambda: iter(()))
    return reviewed().make(seen).double()


def pooled(x, side):
    """Averages over side x side windows, window by window; the side divides that of the map."""
    step = x.shape[2] // side
    starts = range(0, side * step, step)
    windows = [x[:, :, i : i + step, j : j + step].mean((2, 3)) for i in starts for j in starts]
    return torch.stack(windows, -1).unflatten(-1, (side, side))


def test_the_loss_of_a_level_is_the_weighted_mean_over_its_sizes():
    t, s = draw(2, 8, 8), draw(2, 8, 8)
    errors = [F.mse_loss(s, t)] + [F.mse_loss(pooled(s, k), pooled(t, k)) for k in (4, 2, 1)]
    expected = sum(error / 2**k for k, error in enumerate(errors)) / 1.875
    assert hierarchical_context((t,), (s,)).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("side", "sizes"), [(1, ()), (2, (1,)), (4, (2, 1))])
def test_only_smaller_sizes_count(side, sizes):
    t, s = draw(2, side, side), draw(2, side, side)
    errors = [F.mse_loss(s, t)] + [F.mse_loss(pooled(s, k), pooled(t, k)) for k in sizes]
    expected = sum(error / 2**k for k, error in enumerate(errors)) / sum(2.0**-k for k in range(len(errors)))
    assert hierarchical_context((t,), (s,)).item() == pytest.approx(expected.item(), rel=1e-12)


def test_levels_are_summed_equal_ones_are_at_0_and_a_constant_difference_is_its_square():
    t = levels(*OF_TEACHER)
    assert hierarchical_context(t, t).item() == 0
    # At every size of every level the same difference, 2.
    assert hierarchical_context(t, [x + 2 for x in t]).item() == pytest.approx(4 * len(t))
    s = [draw(*x.shape[1:]) for x in t]
    alone = [hierarchical_context((a,), (b,)).item() for a, b in zip(t, s, strict=True)]
    assert hierarchical_context(t, s).item() == pytest.approx(sum(alone))


def by_the_formula(net, features):
    """A_k from the deepest level on, with the module's weights."""

    def conv(part, x, padding=0):
        y = F.conv2d(x, part[0].weight, padding=padding)
        return F.batch_norm(y, None, None, part[1].weight, part[1].bias, training=True)

    def nearest(x, size):
        at = [torch.arange(n) * side // n for n, side in zip(size, x.shape[2:], strict=True)]
        return x[:, :, at[0]][:, :, :, at[1]]

    found, before = [], None
    shapes = [x.shape[2:] for x in levels(*OF_TEACHER)]
    for k in (3, 2, 1, 0):
        x = conv(net.inner[k], levels(features[k])[0])
        if before is not None:
            before = nearest(before, x.shape[2:])
            both = torch.cat([x, before], 1)
            maps = torch.einsum("oc,nchw->nohw", net.fusion[k].weight[:, :, 0, 0], both)
            maps = torch.sigmoid(maps + net.fusion[k].bias[:, None, None])
            x = maps[:, :1] * x + maps[:, 1:] * before
        before = nearest(x, shapes[k])
        found.insert(0, conv(net.outer[k], before, padding=1))
    return found


def test_the_connector_is_the_formula_at_foreign_sizes_and_channels():
    net = connector()
    found = net(*OF_STUDENT)
    assert [x.shape for x in found] == [x.shape for x in levels(*OF_TEACHER)]
    for a, b in zip(found, by_the_formula(net, OF_STUDENT), strict=True):
        torch.testing.assert_close(a, b)


def test_the_connector_has_the_authors_layers():
    net = connector()
    assert [tuple(part[0].weight.shape) for part in net.inner] == [(5, c, 1, 1) for c in (2, 3, 4, 5)]
    assert [tuple(part[0].weight.shape) for part in net.outer] == [(c, 5, 3, 3) for c in (6, 8, 10, 12)]
    assert len(net.fusion) == 3 and all(part[0].bias is None for part in (*net.inner, *net.outer))
    assert Review([8, 600], [(8, 2, 2), (600, 1, 1)]).inner[0][0].out_channels == 512
    for part in (*net.inner, *net.outer):
        fan = part[0].weight[0].numel()
        assert part[0].weight.abs().max() <= (3 / fan) ** 0.5  # uniform, of variance 1 / fan


def test_a_level_is_told_of_deeper_levels_alone():
    net, features = connector().eval(), [x.clone().requires_grad_() for x in OF_STUDENT]
    for k, found in enumerate(net(*features)):
        gradients = torch.autograd.grad(found.square().sum(), features, retain_graph=True, allow_unused=True)
        assert [g is not None and bool(g.abs().max() > 0) for g in gradients] == [j >= k for j in range(4)]


def test_gradients_reach_student_and_connector_but_not_the_teacher():
    net, t, s = connector(), *([x.clone().requires_grad_() for x in xs] for xs in (OF_TEACHER, OF_STUDENT))
    hierarchical_context(levels(*t), net(*s)).backward()
    assert all(x.grad is None for x in t) and all(x.grad.abs().max() > 0 for x in s)
    assert all(p.grad is not None for p in net.parameters())


def test_the_recipe_has_the_published_weight_and_all_groups_with_the_embedding(pair):
    (stage,) = review(pair).stages
    (match,) = stage.matches
    assert match.teacher == ("relu1:in", "relu2:in", "relu3:in", "fc:in")
    assert match.student == ("relu1", "relu2", "relu3", "fc:in")
    assert [match.weight_at(p) for p in (0, 1 / 24, 0.5)] == pytest.approx([0, 2.5, 5])


def test_a_short_training_lowers_the_term_and_leaves_the_connector_behind(pair):
    names = set(pair.student.state_dict())
    plan = Plan(epochs=6, optimiser="adam", lr=0.02, precision="float64")
    student, rows = distill(pair.student, pair.teachers, review(pair, warmup=0), pair.teachers[0].loader, plan)
    assert rows["review"].iloc[-1] < rows["review"].iloc[0] and set(student.state_dict()) == names


def test_what_is_no_level_is_refused():
    with pytest.raises(ShapeMismatch, match=r"a level is a map \(n, c, h, w\) or a vector \(n, c\), not \(3, 4, 2\)"):
        levels(draw(4, 2))
    with pytest.raises(ShapeMismatch):
        hierarchical_context((draw(4, 2, 2),), (draw(3, 2, 2),))
