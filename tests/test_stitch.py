"""The stitch as a map, its forms and starts, and the targets it is trained towards."""

import math

import pytest
import torch
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch, UnknownName
from reptrans.layers import end, front
from reptrans.models import build
from reptrans.similarity import Moments
from reptrans.stitching import (
    INITS,
    MASKS,
    Stitch,
    StitchedNetwork,
    initial_map,
    mask_matrix,
    soft_cross_entropy,
    soft_target_loss,
)
from reptrans.stitching.direct import least_squares, masked, procrustes, reduced_rank


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moments(p=6, q=6):
    g = seeded(1)
    x = torch.randn(400, p, generator=g, dtype=torch.float64) + 1
    return Moments(p, q).update(x, x @ torch.randn(p, q, generator=g, dtype=torch.float64) + 2)


def random_map(p, q):
    return torch.randn(q, p, generator=seeded(2)), torch.randn(q, generator=seeded(3))


@pytest.mark.parametrize(
    ("a", "b", "axis"),
    [((4, 5, 5), (3, 5, 5), 1), ((4, 4, 2), (3, 4, 2), 1), ((5, 5, 4), (5, 5, 3), -1), ((6, 5, 4), (6, 5, 3), -1),
     ((7, 4), (7, 3), -1), ((4, 7), (3, 7), 1), ((4,), (3,), -1)],
)  # fmt: skip
def test_one_map_over_the_channels_of_any_layout(a, b, axis):
    stitch, (w, bias) = Stitch(a, b, axes=(axis, axis)), random_map(4, 3)
    stitch.set(w, bias)
    x = torch.randn(2, *a, generator=seeded())
    found = stitch(x)
    assert found.shape[1:] == b
    torch.testing.assert_close(found.movedim(axis, -1), x.movedim(axis, -1) @ w.T + bias)


def test_maps_of_another_size_are_resized_first():
    stitch = Stitch((2, 4, 4), (2, 8, 8)).set(torch.eye(2), torch.zeros(2))
    x = torch.randn(3, 2, 4, 4, generator=seeded())
    torch.testing.assert_close(stitch(x), F.interpolate(x, (8, 8), mode="bilinear", antialias=True))
    constant = Stitch((2, 8, 8), (2, 3, 3)).set(torch.eye(2), torch.zeros(2))(torch.ones(1, 2, 8, 8))
    torch.testing.assert_close(constant, torch.ones(1, 2, 3, 3))


def test_tokens_meet_maps_as_the_grid_of_patches_that_they_are():
    x = torch.randn(2, 10, 3, generator=seeded())  # a class token before 3 x 3 patches
    to_maps = Stitch((10, 3), (3, 3, 3)).set(torch.eye(3), torch.zeros(3))
    maps = x[:, 1:].unflatten(1, (3, 3)).movedim(-1, 1)
    torch.testing.assert_close(to_maps(x), maps)
    to_tokens = Stitch((3, 3, 3), (10, 3)).set(torch.eye(3), torch.zeros(3))
    torch.testing.assert_close(to_tokens(maps)[:, 1:], x[:, 1:])
    torch.testing.assert_close(to_tokens(maps)[:, 0], x[:, 1:].mean(1))
    larger = Stitch((10, 3), (3, 6, 6)).set(torch.eye(3), torch.zeros(3))
    torch.testing.assert_close(larger(x), F.interpolate(maps, (6, 6), mode="bilinear", antialias=True))
    assert Stitch((3, 4, 4), (9, 5))(torch.ones(2, 3, 4, 4)).shape == (2, 9, 5)
    assert Stitch((10, 3), (3, 3, 5), axes=(-1, -1))(x).shape == (2, 3, 3, 5)
    with pytest.raises(ShapeMismatch, match="7 tokens are no square of patches"):
        Stitch((7, 4), (3, 5, 5))


def test_flatten_maps_everything_to_everything():
    stitch = Stitch((2, 3, 3), (5,), flatten=True)
    x = torch.randn(4, 2, 3, 3, generator=seeded())
    torch.testing.assert_close(stitch(x), x.flatten(1) @ stitch.weight.T + stitch.bias)
    assert Stitch((4, 6), (2, 3, 3), flatten=True)(torch.ones(1, 4, 6)).shape == (1, 2, 3, 3)


def test_shapes_without_a_channel_map_are_refused():
    with pytest.raises(ShapeMismatch) as error:
        Stitch((7, 4), (6, 3))
    assert str(error.value) == (
        "Activations of shape (7, 4) and (6, 3) share no channel map: maps are resized to maps, but tokens and "
        "vectors need equal places. Choose another pair of layers, or flatten=True for one dense map of all."
    )
    with pytest.raises(ShapeMismatch):
        Stitch((7, 4), (8, 4))


def test_low_rank_keeps_the_best_member_and_its_rank_while_training():
    stitch, (w, bias) = Stitch((6,), (6,), form="low rank", rank=2), random_map(6, 6)
    stitch.set(w, bias)
    u, s, vh = torch.linalg.svd(w)
    torch.testing.assert_close(stitch.weight, u[:, :2] * s[:2] @ vh[:2], rtol=1e-4, atol=1e-5)
    optimiser = torch.optim.SGD(stitch.parameters(), lr=0.1)
    stitch(torch.randn(8, 6, generator=seeded())).square().mean().backward()
    optimiser.step()
    assert torch.linalg.matrix_rank(stitch.weight, rtol=1e-4) == 2
    assert sum(p.numel() for p in stitch.parameters()) == 2 * 6 * 2 + 6


def test_orthogonal_stays_a_scaled_rotation_while_training():
    stitch = Stitch((4,), (4,), form="orthogonal").double()
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=seeded())).Q
    stitch.set(1.5 * rotation, torch.zeros(4))
    torch.testing.assert_close(stitch.weight, 1.5 * rotation)
    optimiser = torch.optim.SGD(stitch.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        stitch(torch.randn(8, 4, dtype=torch.float64, generator=seeded())).sin().mean().backward()
        optimiser.step()
    gram = stitch.weight.detach() @ stitch.weight.detach().T
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(4, dtype=torch.float64))
    assert not torch.allclose(stitch.weight, 1.5 * rotation)


def test_mask_holds_while_training():
    mask = torch.eye(4).bool()
    stitch = Stitch((4,), (4,), form="masked", mask=mask).set(*random_map(4, 4))
    optimiser = torch.optim.SGD(stitch.parameters(), lr=0.1)
    stitch(torch.randn(8, 4, generator=seeded())).square().mean().backward()
    optimiser.step()
    assert (stitch.weight[~mask] == 0).all() and (stitch.weight[mask] != 0).all()


def test_batch_norm_changes_nothing_at_first_and_folds_into_the_dense_map():
    g = seeded()
    x = 3 * torch.randn(5000, 4, generator=g, dtype=torch.float64) + 2
    w, bias = (v.double() for v in random_map(4, 3))
    y = x @ w.T + bias
    stitch = Stitch((4,), (3,), batch_norm=True).double().set(w, bias)
    stitch.calibrate(x.mean(0), x.var(0, correction=0), y.mean(0), y.var(0, correction=0))
    torch.testing.assert_close(stitch.eval()(x), y)
    torch.testing.assert_close(stitch.train()(x), y, rtol=1e-4, atol=1e-4)  # running statistics are blended in
    stitch.before.weight.data.mul_(0.5)
    stitch.after.bias.data.add_(1.0)
    dense = stitch.eval().dense()
    torch.testing.assert_close(x @ dense["weight"].T + dense["bias"], stitch(x))


def test_dense_gives_copies():
    stitch = Stitch((2,), (2,))
    before = stitch.dense()
    stitch.set(torch.zeros(2, 2), torch.zeros(2))
    assert before["weight"].abs().sum() > 0


@pytest.mark.parametrize("form", ["free", "orthogonal"])
@pytest.mark.parametrize("layer", ["bn1", "bn3", "relu8", "avgpool"])
def test_identity_stitch_of_a_network_with_itself_changes_no_logit(form, layer):
    net, x = build("tiny10").eval(), torch.randn(3, 3, 32, 32, generator=seeded())
    part = front(net, layer)
    shape = part(x).shape[1:]
    stitch = Stitch(shape, shape, form=form).set(torch.eye(shape[0]), torch.zeros(shape[0]))
    with torch.no_grad():
        if form == "free":
            assert torch.equal(StitchedNetwork(part, stitch, end(net, layer))(x), net(x))
        torch.testing.assert_close(StitchedNetwork(part, stitch, end(net, layer))(x), net(x), rtol=1e-4, atol=1e-5)


def test_only_the_stitch_trains_and_batch_norm_is_left_alone():
    net, x = build("tiny10"), torch.randn(4, 3, 32, 32, generator=seeded())
    shape = front(net.eval(), "bn3")(x).shape[1:]
    stitched = StitchedNetwork(front(net, "bn3"), Stitch(shape, shape), end(net, "bn3"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stitched.train()
    assert stitched.stitch.training and not net.bn1.training and not net.bn5.training
    stitched(x).sum().backward()
    assert {name for name, p in stitched.named_parameters() if p.requires_grad} == {"stitch.weight", "stitch.bias"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_masks():
    m = moments()
    for kind in MASKS[1:]:
        assert (mask_matrix(kind, 6, 6, m, seeded()).sum(1) == 1).all()
    assert mask_matrix("identity", 6, 6, m, seeded()) is None
    with pytest.raises(UnknownName, match="Unknown mask 'semimatch'. Did you mean 'abs-semi-match' or 'semi-match'"):
        mask_matrix("semimatch", 6, 6, m, seeded())


def test_starts_by_chance():
    eye = initial_map("eye", 5, 5, generator=seeded())
    assert torch.equal(eye.weight, torch.eye(5, dtype=torch.float64)) and not eye.bias.any()
    perm = initial_map("perm", 5, 5, generator=seeded()).weight
    assert (perm.sum(0) == 1).all() and (perm.sum(1) == 1).all() and set(perm.flatten().tolist()) == {0.0, 1.0}
    ones = initial_map("ones-zeros", 5, 3, generator=seeded())
    assert torch.equal(ones.weight, torch.ones(3, 5, dtype=torch.float64)) and not ones.bias.any()
    random = initial_map("random", 400, 300, generator=seeded())
    assert random.weight.abs().max() <= 400**-0.5
    assert random.weight.std().item() == pytest.approx(400**-0.5 / math.sqrt(3), rel=0.01)
    singular = torch.linalg.svdvals(initial_map("random", 6, 5, generator=seeded(), rank=2, form="low rank").weight)
    torch.testing.assert_close(singular, torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64))
    assert torch.equal(initial_map("random", 4, 4, generator=seeded(7)).weight,
                       initial_map("random", 4, 4, generator=seeded(7)).weight)  # fmt: skip


def test_least_squares_start_is_the_best_member_of_the_form():
    m, mask = moments(), torch.eye(6).bool()
    start = lambda **kw: initial_map("ps_inv", 6, 6, moments=m, generator=seeded(), **kw).weight  # noqa: E731
    assert torch.equal(start(), least_squares(m).weight)
    assert torch.equal(start(form="low rank", rank=2), reduced_rank(m, 2).weight)
    assert torch.equal(start(form="orthogonal"), procrustes(m).weight)
    assert torch.equal(start(form="masked", mask=mask), masked(m, mask).weight)


@pytest.mark.parametrize("kind", INITS)
def test_every_start_has_the_right_shape(kind):
    found = initial_map(kind, 6, 6, moments=moments(), generator=seeded(), rank=3)
    assert found.weight.shape == (6, 6) and found.bias.shape == (6,)
    assert torch.isfinite(found.weight).all()


def test_messages_of_starts():
    with pytest.raises(UnknownName, match=r"Unknown init 'psinv'. Did you mean 'ps_inv'\?"):
        initial_map("psinv", 4, 4, generator=seeded())
    with pytest.raises(ShapeMismatch, match="init 'eye' needs equal numbers of channels; front has 4, end has 3"):
        initial_map("eye", 4, 3, generator=seeded())
    with pytest.raises(BadValue, match="init 'eye' puts weights where the mask has none"):
        initial_map("eye", 4, 4, generator=seeded(), mask=torch.ones(4, 4).bool(), form="masked")
    with pytest.raises(BadValue, match="init 'eye' has full rank"):
        initial_map("eye", 4, 4, generator=seeded(), rank=2, form="low rank")
    with pytest.raises(BadValue, match="init 'ones-zeros' is not orthogonal"):
        initial_map("ones-zeros", 4, 4, generator=seeded(), form="orthogonal")
    with pytest.raises(BadValue, match="needs a rank from 1 to 3; given 9"):
        Stitch((4,), (3,), form="low rank", rank=9)
    with pytest.raises(ShapeMismatch, match=r"needs a mask of shape \(3, 4\); given \(4, 3\)"):
        Stitch((4,), (3,), form="masked", mask=torch.ones(4, 3))


def test_soft_targets_in_closed_form():
    logits, front_logits, end_logits = torch.randn(3, 8, 5, generator=seeded(), dtype=torch.float64)
    by_hand = -(F.softmax(end_logits / 2, 1) * F.log_softmax(logits / 2, 1)).sum(1).mean()
    assert soft_target_loss("soft_2", logits, front_logits, end_logits, 2.0).item() == pytest.approx(by_hand.item())
    one, two = (soft_cross_entropy(logits, t).item() for t in (front_logits, end_logits))
    both = soft_target_loss("soft_12", logits, front_logits, end_logits).item()
    assert soft_target_loss("soft_1", logits, front_logits, end_logits).item() == pytest.approx(one)
    assert both == pytest.approx((one + two) / 2)
    mean = soft_target_loss("soft_1_plus_2", logits, front_logits, end_logits).item()
    assert mean == pytest.approx(soft_cross_entropy(logits, (front_logits + end_logits) / 2).item())
    assert mean != pytest.approx(both)
    uniform = torch.zeros(4, 10)
    assert soft_cross_entropy(uniform, uniform).item() == pytest.approx(math.log(10))
