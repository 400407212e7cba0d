"""The descent: laws that hold for any objective, what it leaves alone, and how it ends."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from reptrans.errors import BadValue, Diverged, ShapeMismatch
from reptrans.inputs import (
    Fourier,
    Objective,
    Pixels,
    blur,
    class_logit,
    fast_front,
    input_errors,
    jitter,
    like_source,
    match,
    noise,
    optimise_input,
    total_variation,
)
from reptrans.models import build


def image(n: int = 1, size: int = 12, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, size, size, generator=g, dtype=torch.float64)


def start(n: int = 1, size: int = 12) -> torch.Tensor:
    return noise(n, (3, size, size), dtype=torch.float64)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    net = build("cnn3_w8", num_classes=4, image_size=12, seed=1).double()
    net(image(8))
    return net


def test_a_first_layer_is_inverted_to_the_last_digits():
    conv = nn.Conv2d(3, 32, 5, stride=2, padding=2).double()
    nn.init.normal_(conv.weight, generator=torch.Generator().manual_seed(0))
    a = image(2)
    found = optimise_input(match(conv, conv(a)), Pixels(start(2)), prior=(), steps=600, reference=a)
    assert (found.images - a).abs().max() < 1e-4
    assert found.rows["psnr"].min() > 100 and found.rows["relative_error"].max() < 1e-5


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
@pytest.mark.parametrize("form", [Pixels, Fourier])
def test_the_target_stays(net, distance, form):
    a, view = image(2), fast_front(net, "conv2")
    moving = form(a)
    found = optimise_input(match(view, view(moving().detach()), distance), moving, prior=(), steps=5, reference=a)
    assert torch.allclose(found.images, a, atol=1e-8)
    assert found.rows["loss"].abs().max() < 1e-8


@pytest.mark.parametrize("form", [Pixels, Fourier])
def test_a_row_does_not_depend_on_its_neighbours(net, form):
    a, view = image(3), fast_front(net, "conv3")
    settings = {"steps": 8, "transforms": (jitter(1),), "projection": blur(0.5)}
    together = optimise_input(match(view, view(a)), form(start(3)), **settings).images
    alone = [optimise_input(match(view, view(a[i : i + 1])), form(start(3)[i : i + 1]), **settings) for i in range(3)]
    assert torch.allclose(together, torch.cat([one.images for one in alone]), atol=1e-9)


def test_a_layer_scaled_by_ten_gives_the_same_image(net):
    a, scaled, found = image(), copy.deepcopy(net), []
    with torch.no_grad():
        scaled.conv2.weight *= 10
        scaled.conv2.bias *= 10 if scaled.conv2.bias is not None else 1
    for one in (net, scaled):
        view = fast_front(one, "conv2")
        found.append(optimise_input(match(view, view(a)), Pixels(start()), steps=15).images)
    assert torch.allclose(*found, atol=1e-8)


def test_nothing_is_touched_but_the_image(net):
    net = copy.deepcopy(net).train()
    net.conv2.eval()
    net.conv1.weight.requires_grad_(False)
    weights, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    wanted, random = [p.requires_grad for p in net.parameters()], torch.get_rng_state()
    moving = Pixels(start())
    found = optimise_input(class_logit(net, 1), moving, transforms=(jitter(1),), steps=3)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in weights.items())
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(moving(), found.images) and not torch.equal(found.images, start())


def test_a_network_that_draws_leaves_the_random_state():
    before = torch.get_rng_state()
    drawing = Objective(lambda images: (images * torch.rand_like(images)).flatten(1).sum(1))
    optimise_input(drawing, Pixels(start()), steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_failure_gives_the_network_back_too(net):
    net = copy.deepcopy(net).train()
    with pytest.raises(BadValue, match="class 9"):
        optimise_input(class_logit(net, 9), Pixels(start()))
    assert net.training and all(p.requires_grad for p in net.parameters())


def test_the_same_seed_gives_the_same_numbers(net):
    view = fast_front(net, "conv2")
    settings = {"transforms": (jitter(2),), "steps": 4}
    found = [optimise_input(match(view, view(image())), Pixels(start()), seed=s, **settings).images for s in (1, 1, 2)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_adam_and_its_steps_by_hand():
    """One value, L = |x - 1|: the first step of Adam is lr, the second half of it by the cosine."""
    target = torch.ones(1, 1, dtype=torch.float64)
    x = Pixels(torch.full((1, 1, 1, 1), 0.2, dtype=torch.float64))
    found = optimise_input(match(nn.Flatten(), target), x, prior=(), steps=2, lr=0.1, points=2)
    assert found.images.item() == pytest.approx(0.2 + 0.1 + 0.05, abs=1e-6)
    assert found.trace["loss"].tolist() == pytest.approx([0.8, 0.7, 0.65], abs=1e-6)
    assert found.trace["step"].tolist() == [0, 1, 2]


def test_the_prior_is_added(net):
    view, a = fast_front(net, "conv3"), image()
    rough, smooth = (optimise_input(match(view, view(a)), Pixels(start()), prior=(total_variation(w),), steps=30)
                     for w in (0.0, 3.0))  # fmt: skip
    variation = [total_variation(1.0)(each.images).item() for each in (rough, smooth)]
    assert variation[1] < 0.5 * variation[0]
    assert smooth.rows["loss"].item() == pytest.approx(match(view, view(a))(smooth.images).item())
    assert smooth.rows["loss"].item() == smooth.rows["relative_error"].item()


def test_only_what_a_transform_leaves_moves_under_descent(net):
    moving, crop = Pixels(start(size=14)), lambda images, generator: images[..., 1:13, 2:14]
    found = optimise_input(
        class_logit(net, 0), moving, prior=(), transforms=(crop,), steps=1, optimiser=torch.optim.SGD, lr=1.0
    )
    moved = (found.images != start(size=14)).any(1)[0]
    assert moved.any(1).sum() == 12 and moved.any(0).sum() == 12


def test_rows_and_trace(net):
    view, a = fast_front(net, "conv1"), image(2)
    found = optimise_input(match(view, view(a), "l2"), Pixels(start(2)), steps=10, points=5, reference=a)
    assert found.rows["row"].tolist() == [0, 1]
    assert found.rows["steps"].tolist() == [10, 10] and not found.rows["diverged"].any()
    assert found.rows[["mse", "psnr"]].equals(input_errors(found.images, a)[["mse", "psnr"]])
    assert found.rows["relative_error"].tolist() == pytest.approx(match(view, view(a))(found.images).tolist())
    assert found.trace["step"].unique().tolist() == [0, 2, 4, 6, 8, 10]
    last = found.trace[found.trace["step"] == 10]
    for column in ("loss", "relative_error", "mse"):
        assert last[column].tolist() == pytest.approx(found.rows[column].tolist())


def test_a_class_has_no_relative_error(net):
    found = optimise_input(class_logit(net, [0, 3]), Pixels(start(2)), steps=20)
    assert found.rows["relative_error"].isna().all() and "outside" in found.rows
    with torch.no_grad():
        before, after = (fast_front(net)(images)[[0, 1], [0, 3]] for images in (start(2), found.images))
    assert (after > before).all()
    assert found.rows["loss"].tolist() == pytest.approx((-after).tolist())


@pytest.mark.parametrize("form", [Pixels, Fourier])
def test_a_row_that_diverges_keeps_its_last_finite_image(form):
    def losses(images):
        values = images.flatten(1)
        return torch.where(values.amax(1) > 1, torch.nan, -values.sum(1))

    begin = torch.tensor([0.7, -5.0], dtype=torch.float64).view(2, 1, 1, 1).expand(2, 1, 2, 2).clone()
    with pytest.warns(RuntimeWarning, match="row 0 has no finite loss or gradient after .* smaller lr"):
        found = optimise_input(Objective(losses), form(begin), prior=(), steps=20, lr=0.3)
    alone = optimise_input(Objective(losses), form(begin[1:]), prior=(), steps=20, lr=0.3)
    assert found.rows["diverged"].tolist() == [True, False]
    assert 0 < found.rows["steps"][0] < 20 and found.rows["steps"][1] == 20
    assert 0.7 < found.images[0].max() <= 1 and torch.isfinite(found.images).all()
    assert torch.allclose(found.images[1:], alone.images)
    assert found.rows["loss"].notna().all() and found.trace["loss"].notna().all()


def test_a_gradient_that_is_no_number_ends_the_row():
    begin = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="row 0"):
        found = optimise_input(Objective(lambda x: x.abs().sqrt().flatten(1).sum(1)), Pixels(begin), prior=(), steps=3)
    assert found.images.item() == 0


def test_no_finite_start_is_refused():
    with pytest.raises(Diverged, match="row 1 is nan before the first step"):
        begin = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        optimise_input(Objective(lambda x: x.flatten(1).sum(1).log()), Pixels(begin))


def test_lbfgs_takes_one_image(net):
    view, a = fast_front(net, "conv1"), image(2)
    searching = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")
    found = optimise_input(match(view, view(a[:1]), "l2"), Pixels(start()), prior=(), steps=10, optimiser=searching,
                           lr=lambda _: 1.0, reference=a[:1])  # fmt: skip
    assert found.rows["relative_error"].item() < 1e-3
    with pytest.raises(BadValue, match="one image at a time"):
        optimise_input(match(view, view(a)), Pixels(start(2)), optimiser=searching)


def test_the_sources_steps_by_hand(net):
    """a <- blur(a - lr_t grad k sum |y - O(a)|), both falling along a line."""
    view, a = fast_front(net, "conv2"), image()
    y, x = view(a), start()
    settings, k = like_source("untrained layer1")
    found = optimise_input(match(view, y, scale=k), Pixels(x), **(settings | {"steps": 4}))
    for t in range(4):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(0.01 * (y - view(x)).abs().sum(), x)
        rate, width = (begin * (4 - t) / 4 + end * t / 4 for begin, end in ((2.5, 1.5), (2.4, 0.4)))
        x = blur(width)(x.detach() - rate * gradient, 0.0)
    assert torch.allclose(found.images, x, atol=1e-12)
    assert settings["steps"] == 220 and k == 0.01


def test_the_sources_cases_are_named():
    assert like_source("class")[0]["lr"](0.5) == pytest.approx(1.25)
    with pytest.raises(ValueError, match="no case 'layer3'.*trained layer4"):
        like_source("layer3")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"steps": -1}, BadValue, "steps is -1"),
        ({"steps": 1.5}, BadValue, "steps is 1.5"),
        ({"lr": 0.0}, BadValue, "lr is 0.0"),
        ({"lr": math.nan}, BadValue, "lr is nan"),
        ({"points": -1}, BadValue, "points is -1"),
        ({"reference": image() * 255}, BadValue, "Divide by 255"),
        ({"reference": image(size=10)}, ShapeMismatch, r"references \(1, 3, 10, 10\) do not fit images"),
        ({"reference": image(3)}, ShapeMismatch, "do not fit"),
    ],
)
def test_what_is_refused(net, change, error, words):
    view = fast_front(net, "conv1")
    with pytest.raises(error, match=words):
        optimise_input(match(view, view(image())), Pixels(start()), **change)


@pytest.mark.parametrize("wrong", [torch.rand(1, 1, 12, 12).double(), torch.rand(1, 3, 12, 12)])
def test_images_that_the_network_cannot_take_are_refused(net, wrong):
    with pytest.raises(ShapeMismatch, match="does not take images .* of torch.float"):
        optimise_input(class_logit(fast_front(net), 0), Pixels(wrong))
