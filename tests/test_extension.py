"""Networks beside old ones: the losses by hand, who gets which gradient, and what stays untouched."""

import json
import math
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reptrans.bench import effect
from reptrans.data import Dataset, load_dataset
from reptrans.data.loader import Batch
from reptrans.errors import BadValue, LayerNotFound, ShapeMismatch, UnknownName
from reptrans.experiments.extension import prices
from reptrans.extension import (
    OUTPUT_LOSSES,
    Hidden,
    Lens,
    LensTraining,
    Outputs,
    ThroughLens,
    extend,
    half_cosine,
    hidden_losses,
    lensed,
    pcgrad,
    reverse_gradient,
)
from reptrans.extension.hidden import approximator, correlation, explained_variance, resized, top_values
from reptrans.layers import front
from reptrans.models import build
from reptrans.similarity import error_consistency, fold, linear_cka
from reptrans.tensorfiles import load_tensors
from reptrans.training import Plan, fit, predict

REFERENCE = Path(__file__).resolve().parent / "reference"
NAMES = list(hidden_losses())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int, width: int = 4) -> nn.Sequential:
    net = build(f"cnn3_w{width}", num_classes=5, in_channels=1, image_size=8, seed=seed).double()
    with torch.no_grad():  # so that its statistics are not those of a new network
        net(normal(32, 1, 8, 8, seed=seed))
    return net


def batch(n: int = 12) -> Batch:
    return Batch(normal(n, 1, 8, 8, seed=9), torch.arange(n) % 5, torch.arange(n))


EXAMPLE = batch(2).images


def state(net: nn.Module) -> list[torch.Tensor]:
    return [v.clone() for v in net.state_dict().values()]


def gradients(value: torch.Tensor, net: nn.Module) -> list[torch.Tensor | None]:
    return torch.autograd.grad(value, list(net.parameters()), retain_graph=True, allow_unused=True)


# The losses


@pytest.mark.parametrize(
    ("name", "stored", "side"),
    [
        ("exp_var", "ke_expvar_celu_mean", "new"),
        ("l1_corr", "ke_corr_l1_mean", "new"),
        ("l2_corr", "ke_corr_l2_mean", "new"),
        ("lin_cka", "ke_lincka_pixels", "new"),
        ("l2_rel_rep", "ke_relrep_msd", "approximator"),
    ],
)
def test_losses_agree_with_the_authors(name, stored, side):
    tensors, _ = load_tensors(REFERENCE / "extension.safetensors")
    values = json.loads((REFERENCE / "extension.json").read_text("utf-8"))["values"]
    found = getattr(hidden_losses()[name], side)(tensors["S1"], tensors["approx_mix"])
    # Theirs ran in float32.
    assert found.item() == pytest.approx(values[stored], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_ends_of_the_losses(name):
    z = normal(6, 3, 4, 4)
    new, close = (side(z, z).item() for side in hidden_losses()[name][:2])
    log_end = math.log(1e-7)
    expected = {"exp_var": (1, -1), "topk_exp_var": (1, -1), "l2_rel_rep": (0, 0), "log_corr": (-1e-7, log_end)}
    assert (new, close) == pytest.approx(expected.get(name, (1, 0)), abs=2e-6 if "exp_var" in name else 1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_losses_keep_their_bounds(name, seed):
    z, a = normal(6, 3, 4, 4, seed=seed), 30 * normal(6, 3, 4, 4, seed=seed + 50)
    low, high = {"log_corr": (-16.2, 0), "exp_var": (-1, 1), "topk_exp_var": (-1, 1), "l2_rel_rep": (-4, 0)}.get(
        name, (0, 1)
    )
    assert low <= hidden_losses()[name].new(z, a).item() <= high


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constant", ["z", "a", "both"])
def test_constant_features_give_no_nan(name, constant):
    z, a = normal(6, 3, 4, 4).requires_grad_(), normal(6, 3, 4, 4, seed=1).requires_grad_()
    seen = [v * 0 + 0.1 if constant in (which, "both") else v for which, v in (("z", z), ("a", a))]
    for side in hidden_losses()[name][:2]:
        value = side(*seen)
        found = torch.autograd.grad(value, (z, a), allow_unused=True, retain_graph=True)
        assert all(v.isfinite().all() for v in (value, *found) if v is not None)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_celu_has_its_alpha(alpha):
    z = torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    r2 = 1 - 32 / (2 + 1e-4)  # a = -3 z: residuals 4 and 4
    expected = alpha * (math.exp(r2 / alpha) - 1)
    assert explained_variance(z, -3 * z, alpha).item() == pytest.approx(expected, rel=1e-12)
    found = hidden_losses(alpha=alpha)["exp_var"].new(z, -100 * z).item()
    assert found == pytest.approx(-alpha, rel=1e-12)


def test_correlation_by_hand():
    z = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(3, 1, 1, 1)
    a = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    assert correlation(torch.cat([z, z], 1), torch.cat([a, -z], 1)).tolist() == pytest.approx([0.5, -1])
    losses = hidden_losses()
    two = torch.cat([z, 3 * z], 1), torch.cat([a, -z], 1)
    assert losses["wl1_corr"].new(*two).item() == pytest.approx(0.25 * 0.5 + 0.75)
    assert losses["log_corr"].new(*two).item() == pytest.approx((math.log(0.5) + math.log(1e-7)) / 2)


def test_a_constant_channel_correlates_with_nothing():
    constants = [torch.full((n, 1, 1, 1), 0.1 * k) for n in range(5, 60) for k in (1, 3, 7)]
    assert any((v - v.mean()).any() for v in constants), "in some the rounded mean is another number"
    assert all(correlation(v, normal(len(v), 1, 1, 1).float()).item() == 0 for v in constants)


def test_negative_correlation_has_no_gradient_in_its_logarithm():
    z = normal(6, 1, 2, 2).requires_grad_()
    assert not torch.autograd.grad(hidden_losses()["log_corr"].new(z, -z.detach()), z)[0].any()


def test_largest_values_are_those_of_both_sides():
    z, a = torch.zeros(1, 1, 1, 6), torch.zeros(1, 1, 1, 6)
    z[..., 0], z[..., 1], a[..., 4] = -5, 2, 3
    a[..., 0] = 1
    assert top_values(z, a, 1).flatten().tolist() == [True, False, False, False, True, False]


def test_top_losses_with_all_values_are_the_plain_ones():
    z, a = normal(4, 3, 2, 2), normal(4, 3, 2, 2) + 0.5 * normal(4, 3, 2, 2, seed=1)
    losses = hidden_losses(top=12)
    for name in ("exp_var", "l2_corr"):
        assert losses[f"topk_{name}"].new(z, a).item() == pytest.approx(losses[name].new(z, a).item(), rel=1e-12)


def test_top_correlation_is_of_the_chosen_values_alone():
    z, a = torch.zeros(2, 1, 1, 3, dtype=torch.float64), torch.zeros(2, 1, 1, 3, dtype=torch.float64)
    z[0, 0, 0], z[1, 0, 0] = torch.tensor([5.0, 4, 0.1]), torch.tensor([9.0, 1, 0.2])
    a[0, 0, 0], a[1, 0, 0] = torch.tensor([1.0, 2, 0.3]), torch.tensor([3.0, 1, -0.9])
    x, y = torch.tensor([5.0, 4, 9, 1]), torch.tensor([1.0, 2, 3, 1])
    expected = torch.corrcoef(torch.stack([x, y]).double())[0, 1].item() ** 2
    assert hidden_losses(top=2)["topk_l2_corr"].new(z, a).item() == pytest.approx(expected, rel=1e-12)


# The approximator


def test_approximator_of_depth_one_is_linear():
    chain = approximator(3, 2).double()
    with torch.no_grad():
        chain[0].bias.copy_(torch.tensor([1.0, 2, 3]).view(3, 1, 1))
        chain[2].bias.fill_(0.5)
    x = normal(4, 3, 2, 2)
    weight = chain[1].weight[:, :, 0, 0]
    expected = torch.einsum("oc,nchw->nohw", weight, x + torch.tensor([1.0, 2, 3]).view(3, 1, 1)) + 0.5
    assert torch.allclose(chain(x), expected, rtol=1e-12)
    assert [type(m).__name__ for m in chain] == ["Bias", "Conv2d", "Bias"]


def test_deeper_approximators():
    kinds = ["Bias", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "Bias"]
    chain = approximator(3, 2, depth=3, kernel=3)
    assert [type(m).__name__ for m in chain] == kinds
    assert [tuple(m.weight.shape[:2]) for m in chain if isinstance(m, nn.Conv2d)] == [(3, 3), (3, 3), (2, 3)]
    assert all(m.bias is None for m in chain if isinstance(m, nn.Conv2d))
    assert chain(torch.zeros(2, 3, 5, 5)).shape == (2, 2, 5, 5)
    x = torch.ones(1)
    assert approximator(3, 2, depth=0)(x) is x


def test_resizing_halves_by_means_of_neighbours():
    assert torch.equal(resized(torch.full((1, 2, 4, 4), 3.0), (2, 2)), torch.full((1, 2, 2, 2), 3.0))
    x = torch.ones(1, 1, 4, 4)
    assert resized(x, (4, 4)) is x


# Hidden layers: who gets which gradient


@pytest.mark.parametrize("name", NAMES)
def test_each_term_moves_one_side(name):
    new, old = network(0), network(1)
    condition = Hidden(new, [old], "conv2", name, example=EXAMPLE, depth=1, w_sim=0.7, w_dis=1.3)
    terms, _ = condition(batch())
    assert list(terms) == ["cross_entropy", "approximation", "extension"]
    assert all(g is None for g in gradients(terms["approximation"], new))
    assert all(g is None for g in gradients(terms["extension"], condition))
    assert any(g is not None and g.any() for g in gradients(terms["approximation"], condition))
    assert any(g is not None and g.any() for g in gradients(terms["extension"], new)) or name == "log_corr"
    assert all(g is None for g in gradients(terms["cross_entropy"], condition))


def test_min_max_by_hand():
    new, old = network(0), network(1)
    condition = Hidden(new, [old], "conv2", "l2_corr", example=EXAMPLE, w_ce=0.5, w_sim=0.7, w_dis=1.3)
    terms, _ = condition(batch())
    found = gradients(sum(terms.values()), nn.ModuleList([new, condition]))
    images, labels, _ = batch()
    z = new[:5](images)
    chain = condition.approximators["conv2"][0]
    a = chain(old.eval()[:5](images))
    rho = lambda x, y: torch.stack([torch.corrcoef(torch.stack([x[:, c].flatten(), y[:, c].flatten()]))[0, 1]  # noqa: E731
                                    for c in range(x.shape[1])])  # fmt: skip
    loss = 0.5 * F.cross_entropy(new[5:](z), labels)
    loss = loss + 0.7 * (1 - rho(z.detach(), a).square().mean()) + 1.3 * rho(z, a.detach()).square().mean()
    expected = gradients(loss, nn.ModuleList([new, condition]))
    assert all(torch.allclose(f, e, rtol=1e-8, atol=1e-12) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["l1_corr", "l2_corr", "wl1_corr", "exp_var", "lin_cka", "l2_rel_rep"])
def test_the_other_sign_is_the_opposite_gradient(name):
    new, old = network(0), network(1)
    away, towards = (
        gradients(Hidden(new, [old], "conv2", name, example=EXAMPLE, depth=1, sign=s)(batch())[0]["extension"], new)
        for s in (-1, 1)
    )
    assert all((a is None) == (t is None) for a, t in zip(away, towards, strict=True))
    pairs = [(a, t) for a, t in zip(away, towards, strict=True) if a is not None]
    assert pairs and all(torch.allclose(a, -t, rtol=1e-9, atol=1e-14) for a, t in pairs)


def test_reversed_gradient():
    x = normal(3).requires_grad_()
    assert torch.equal(reverse_gradient(x, 0.3), x)
    assert torch.allclose(
        torch.autograd.grad((reverse_gradient(x, 0.3) * 2).sum(), x)[0], torch.full((3,), -0.6).double()
    )


@pytest.mark.parametrize("mode", ["reversal", "unusable"])
def test_reversal_only_turns_the_new_networks_gradient(mode):
    new, old = network(0), network(1)
    away, towards = (Hidden(new, [old], "conv2", "l2_corr", example=EXAMPLE, mode=mode, sign=s, w_dis=w)
                     for s, w in ((-1, 0.3), (1, 1)))  # fmt: skip
    one, other = (c(batch())[0][mode] for c in (away, towards))
    assert one.item() == other.item()
    for a, t in zip(gradients(one, new), gradients(other, new), strict=True):
        assert (a is None) == (t is None)
        assert a is None or torch.allclose(a, -0.3 * t, rtol=1e-9, atol=1e-14)
    pairs = zip(gradients(one, away), gradients(other, towards), strict=True)
    assert all(torch.allclose(a, t, rtol=1e-12) and a.any() for a, t in pairs if a is not None)


def test_unusable_is_the_old_tails_cross_entropy():
    new, old = network(0), network(1)
    condition = Hidden(new, [old], "conv2", example=EXAMPLE, mode="unusable")
    term = condition(batch())[0]["unusable"]
    images, labels, _ = batch()
    inner = condition.approximators["conv2"][0](new[:5](images))
    assert term.item() == pytest.approx(F.cross_entropy(old.eval()[5:](inner), labels).item(), rel=1e-12)


def test_subtraction_takes_the_approximation_off():
    new, old = network(0).eval(), network(1)
    condition = Hidden(new, [old], "conv2", "exp_var", example=EXAMPLE, mode="subtraction")
    images, labels, _ = batch()
    expected = new[5:](new[:5](images) - condition.approximators["conv2"][0](old.eval()[:5](images)))
    net = condition.predictor()
    assert torch.allclose(net(images), expected, rtol=1e-12)
    # Who looks at the layer sees what goes on from it.
    assert torch.allclose(new[5:](front(net, "new.conv2")(images)), expected, rtol=1e-12)
    terms, _ = condition(batch())
    assert terms["cross_entropy"].item() == pytest.approx(F.cross_entropy(expected, labels).item(), rel=1e-12)
    assert list(terms) == ["cross_entropy", "approximation"]
    assert all(g is None for g in gradients(terms["cross_entropy"], condition))
    assert all(g is None for g in gradients(terms["approximation"], new))


# Hidden layers: several and other networks


def test_aggregate_joins_channels_and_the_mean_does_not():
    new, olds = network(0), [network(1), network(2, width=3)]
    joined = Hidden(new, olds, ["conv1", "conv2"], "exp_var", example=EXAMPLE)
    each = Hidden(new, olds, ["conv1", "conv2"], "exp_var", example=EXAMPLE, aggregate=False)
    assert [c[1].weight.shape[:2] for c in joined.approximators["conv2"]] == [(8, 14)]
    assert [c[1].weight.shape[:2] for c in each.approximators["conv2"]] == [(8, 8), (8, 6)]
    singles = [Hidden(new, [old], "conv2", "exp_var", example=EXAMPLE) for old in olds]
    alone = Hidden(new, olds, "conv2", "exp_var", example=EXAMPLE, aggregate=False)
    for i, single in enumerate(singles):
        single.approximators["conv2"][0].load_state_dict(alone.approximators["conv2"][i].state_dict())
    mean = sum(s(batch())[0]["extension"].item() for s in singles) / 2
    assert alone(batch())[0]["extension"].item() == pytest.approx(mean, rel=1e-12)


def test_other_channels_and_sizes():
    new, old = network(0), network(1, width=3)
    images = batch().images
    halved, doubled = {"conv2": "conv1"}, {"conv1": "conv2"}  # 4 x 4 from 8 x 8, and the reverse
    for pair, size in ((halved, (4, 4)), (doubled, (8, 8))):
        ((here, there),) = pair.items()
        z, a = dict(zip(("conv1", "conv2"), (new[:1](images), new[:5](images)), strict=True))[here], None
        a = (old.eval()[:1] if there == "conv1" else old.eval()[:5])(images)
        a = F.interpolate(a, size=size, mode="bilinear", antialias=True)
        found = Hidden(new, [old], pair, "lin_cka", example=EXAMPLE)(batch())[0]["extension"]
        assert found.item() == pytest.approx(linear_cka(fold(z, "pixels"), fold(a, "pixels")).item(), rel=1e-9)
        assert Hidden(new, [old], pair, "exp_var", example=EXAMPLE)(batch())[0]["extension"].isfinite()


def test_two_layers_may_share_an_old_one():
    new, old = network(0), network(1)
    both = Hidden(new, [old], {"conv2": "conv2", "conv3": "conv2"}, example=EXAMPLE)(batch())[1]
    for name in ("conv2", "conv3"):
        alone = Hidden(new, [old], {name: "conv2"}, example=EXAMPLE)(batch())[1]
        assert both[f"alike_{name}"].item() == pytest.approx(alone[f"alike_{name}"].item(), rel=1e-12)


def test_hidden_vectors_and_tokens():
    class Tokens(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.embed, self.head = nn.Linear(8, width), nn.Linear(width, 5)

        def forward(self, x):
            return self.head(self.embed(x[:, 0]).mean(1))

    new, old = Tokens(6).double(), Tokens(4).double()
    for mode in ("extension", "reversal", "subtraction", "unusable"):
        terms, _ = Hidden(new, [old], "embed", "exp_var", example=EXAMPLE, mode=mode)(batch())
        assert all(v.isfinite() for v in terms.values())
    dense = [build("dense", num_classes=5, in_channels=1, image_size=8, seed=s).double() for s in (0, 1)]
    for mode in ("extension", "reversal", "subtraction", "unusable"):
        terms, _ = Hidden(dense[0], dense[1:], "relu2", "l2_corr", example=EXAMPLE, mode=mode)(batch())
        assert all(v.isfinite() for v in terms.values())


def test_in_place_operations_behind_the_layer():
    make = lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5)).double()  # noqa: E731
    new, old = make(), make()
    terms, figures = Hidden(new, [old], "0", "lin_cka", example=EXAMPLE)(batch())
    maps = [fold(net[0](batch().images), "pixels") for net in (new, old)]
    assert terms["extension"].item() == pytest.approx(linear_cka(*maps).item(), rel=1e-10)
    assert figures["alike_0"].item() == terms["extension"].item()


def test_ramp():
    assert [half_cosine(p, 0.2, 0.4) for p in (0.1, 0.2, 0.4, 0.6, 0.9)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert half_cosine(0.0, 0.0, 0.0) == 1
    condition = Hidden(network(0), [network(1)], "conv2", example=EXAMPLE, start=0.5, w_dis=4)
    assert condition(batch(), 0.4)[0]["extension"].item() == 0
    terms, figures = condition(batch(), 0.5)
    assert terms["extension"].item() == pytest.approx(4 * figures["alike_conv2"].item())


# What stays untouched


CONDITIONS = {
    "extension": partial(Hidden, layers="conv2", loss="exp_var"),
    "reversal": partial(Hidden, layers="conv2", mode="reversal"),
    "subtraction": partial(Hidden, layers="conv2", mode="subtraction"),
    "unusable": partial(Hidden, layers="conv2", mode="unusable"),
    "output": Outputs,
    "pcgrad": partial(Outputs, step="pcgrad"),
    "alternating": partial(Outputs, step="alternating", before="conv2"),
    "lens": partial(ThroughLens, lens=Lens(1, 2, 4).double()),
}


def loader(n: int = 40):
    class Batches(list):
        pass

    images, labels = normal(n, 1, 8, 8, seed=5), torch.arange(n) % 5
    return Batches(Batch(images[i : i + 10], labels[i : i + 10], torch.arange(i, i + 10)) for i in range(0, n, 10))


@pytest.mark.parametrize("kind", CONDITIONS)
def test_old_networks_stay_as_they_are_and_eval_is_honoured(kind):
    new, old = network(0), network(1).train()
    before, first = state(old), state(new)
    condition = CONDITIONS[kind](new, [old], example=EXAMPLE)
    assert all(torch.equal(a, b) for a, b in zip(first, state(new), strict=True)), "making it changed the new network"
    condition.train()
    old.train()
    history = fit(
        condition,
        condition.modules_to_train(),
        loader(),
        Plan(epochs=2, lr=0.05, schedule="constant", precision="float64"),
    )
    assert all(torch.equal(a, b) for a, b in zip(before, state(old), strict=True))
    assert all(p.grad is None for p in old.parameters()) and not condition.olds[0].training
    assert not all(torch.equal(a, b) for a, b in zip(first, state(new), strict=True))
    assert len(history) == 2
    new.eval()
    trained = state(new)
    condition(batch())
    assert not new.training and all(torch.equal(a, b) for a, b in zip(trained, state(new), strict=True))


@pytest.mark.parametrize("kind", CONDITIONS)
def test_same_seed_same_numbers(kind):
    values = [CONDITIONS[kind](network(0), [network(1)], example=EXAMPLE)(batch())[0] for _ in range(2)]
    assert [v.item() for v in values[0].values()] == [v.item() for v in values[1].values()]


@pytest.mark.parametrize("kind", CONDITIONS)
def test_half_precision(kind):
    new, old = network(0).float(), network(1).float()
    images, labels, index = batch()
    if kind == "lens":
        CONDITIONS[kind].keywords["lens"].float()
    condition = CONDITIONS[kind](new, [old], example=EXAMPLE.float())
    plan = Plan(epochs=1, lr=0.01, schedule="constant", precision="bfloat16")
    history = fit(condition, condition.modules_to_train(), [Batch(images.float(), labels, index)], plan)
    assert history.notna().all(axis=None)
    if kind == "lens":
        lens = CONDITIONS[kind].keywords["lens"].requires_grad_(True)
        training = LensTraining(lens, [old])
        fit(training, training.modules_to_train(), [Batch(images.float(), labels, index)], plan)
        CONDITIONS[kind].keywords["lens"] = Lens(1, 2, 4).double()


# Outputs


def test_inverted_cross_entropy_by_hand():
    new, old = torch.zeros(1, 4), torch.tensor([[0.0, 0, 50, 0]])
    # Among the wrong classes 1 to 3 the old network says 2; what is left are halves for 1 and 3.
    assert OUTPUT_LOSSES["inverted_cross_entropy"](new, [old], torch.tensor([0])).item() == pytest.approx(math.log(3))
    new = torch.tensor([[9.0, 1, 0, 1]])
    expected = -math.log(math.e / (2 * math.e + 1))
    found = OUTPUT_LOSSES["inverted_cross_entropy"](new, [old], torch.tensor([0])).item()
    assert found == pytest.approx(expected, rel=1e-6)
    warm = OUTPUT_LOSSES["inverted_cross_entropy"](new, [old], torch.tensor([0]), temperature=1e6).item()
    assert warm == pytest.approx(math.log(3), rel=1e-4)


def test_both_wrong_counts_those_alone():
    old, labels = torch.tensor([[0.0, 3, 0], [3, 0, 0], [0, 3, 0]]), torch.tensor([0, 0, 0])
    new = torch.tensor([[0.0, 2, 0], [0, 2, 0], [2, 0, 0]])
    found = OUTPUT_LOSSES["inverted_where_both_wrong"](new, [old], labels)
    alone = OUTPUT_LOSSES["inverted_cross_entropy"](new[:1], [old[:1]], labels[:1])
    assert found.item() == pytest.approx(alone.item())
    assert OUTPUT_LOSSES["inverted_where_both_wrong"](new[2:], [old[2:]], labels[2:]).item() == 0


def test_cosines_by_hand():
    new, old, labels = torch.tensor([[3.0, 4, 0]]), torch.tensor([[4.0, 3, 0]]), torch.tensor([2])
    assert OUTPUT_LOSSES["logit_cosine"](new, [old], labels).item() == pytest.approx(24 / 25)
    p, q = torch.tensor([1, math.e]), torch.tensor([math.e, 1])
    expected = (p @ q / (p.norm() * q.norm())).item()
    assert OUTPUT_LOSSES["wrong_class_cosine"](new, [old], labels).item() == pytest.approx(expected, rel=1e-6)
    # Longer old probabilities change nothing, and equal ones give 1.
    longer = old + torch.tensor([[5.0, 5, 0]])
    assert OUTPUT_LOSSES["wrong_class_cosine"](new, [longer], labels).item() == pytest.approx(expected, rel=1e-6)
    assert OUTPUT_LOSSES["wrong_class_cosine"](new, [new], labels).item() == pytest.approx(1)


def test_adaptive_diversity_by_hand():
    # Label 0; wrong classes (1/2, 1/4) and (1/4, 1/2) with 1/4 for the label.
    new, old = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.25, 0.5, 0.25], [0.25, 0.25, 0.5]))
    mean = [0.25, 0.375, 0.375]
    entropy = -sum(p * math.log(p) for p in mean)
    determinant = (1 + 1e-6) ** 2 - 0.8**2
    expected = -2 * entropy - 0.5 * math.log(determinant)
    found = OUTPUT_LOSSES["adaptive_diversity"](new, [old], torch.tensor([0])).item()
    assert found == pytest.approx(expected, rel=1e-12)


def test_entropies_by_hand():
    even, sure, labels = torch.zeros(1, 3), torch.tensor([[200.0, 0, 0]]), torch.tensor([0])
    entropy, focal, boosting = (
        OUTPUT_LOSSES[n] for n in ("ensemble_entropy", "focal_ensemble_entropy", "entropy_weighted_boosting")
    )
    assert entropy(even, [even], labels).item() == pytest.approx(-math.log(3))
    assert entropy(sure, [sure], labels).item() == 0
    assert focal(even, [even], labels, gamma=1.0).item() == pytest.approx(-2 / 3 * math.log(3))
    assert boosting(even, [even], labels).item() == pytest.approx(math.log(3))
    assert boosting(even, [sure], labels).item() == 0


def test_focal_entropy_does_not_pay_for_being_wrong():
    new = torch.tensor([[1.0, 0, 0]], requires_grad=True)
    gradient = torch.autograd.grad(OUTPUT_LOSSES["focal_ensemble_entropy"](new, [new.detach()], torch.tensor([0])), new)
    p = new.detach().softmax(1)
    frozen = ((1 - p[0, 0]) ** 2).item()
    plain = torch.autograd.grad(OUTPUT_LOSSES["ensemble_entropy"](new, [new.detach()], torch.tensor([0])), new)
    assert torch.allclose(gradient[0], frozen * plain[0])


@pytest.mark.parametrize("name", OUTPUT_LOSSES)
def test_output_losses_are_finite_everywhere(name):
    for new, old in ((200.0, 200.0), (200.0, -200.0), (0.0, 0.0)):
        a = torch.tensor([[new, 0, 0, 0], [0, new, 0, 0]], requires_grad=True)
        b, labels = torch.tensor([[old, 0, 0, 0], [0, 0, old, 0]]), torch.tensor([0, 3])
        rounding = 1e-6
        value = OUTPUT_LOSSES[name](a, [b, b], labels)
        assert value.isfinite() and torch.autograd.grad(value, a, allow_unused=True)[0].isfinite().all()
        least = {"logit_cosine": -1, "ensemble_entropy": -math.log(4), "focal_ensemble_entropy": -math.log(4),
                 "adaptive_diversity": -2 * math.log(4)}  # fmt: skip
        assert value.item() >= least.get(name, 0) - rounding


# Gradients in each other's way


def test_projection_by_hand():
    p = nn.Parameter(torch.zeros(2))
    terms = {"a": p[0] + 3, "b": -p[0] + p[1]}
    found = pcgrad(terms, [p])
    # g_a = (1, 0), g_b = (-1, 1), product -1: g_a + g_b / 2 = (1/2, 1/2), g_b + g_a = (0, 1).
    assert torch.autograd.grad(found["a"], p, retain_graph=True)[0].tolist() == [0.5, 0.5]
    assert torch.autograd.grad(found["b"], p)[0].tolist() == [0, 1]
    assert [v.item() for v in found.values()] == [3, 0]


def test_gradients_that_agree_are_left_alone():
    p = nn.Parameter(torch.zeros(2))
    found = pcgrad({"a": 2 * p[0], "b": p.sum(), "c": p.sum() * 0}, [p])
    assert [torch.autograd.grad(v, p)[0].tolist() for v in found.values()] == [[2, 0], [1, 1], [0, 0]]


def test_projected_steps_are_those_of_the_terms():
    new = network(0)
    plain, projected = (
        Outputs(new, [network(1)], "logit_cosine", example=EXAMPLE, step=s)(batch())[0] for s in ("together", "pcgrad")
    )
    assert [v.item() for v in plain.values()] == [v.item() for v in projected.values()]
    flat = lambda v: torch.cat([g.flatten() for g in gradients(v, new)])  # noqa: E731
    ce, diversity = (flat(v) for v in plain.values())
    overlap = min((ce @ diversity).item(), 0.0)
    expected = ce + diversity - overlap / (ce @ ce) * ce - overlap / (diversity @ diversity) * diversity
    assert torch.allclose(flat(sum(projected.values())), expected, rtol=1e-8, atol=1e-12)


def test_alternating_steps():
    new = network(0)
    condition = Outputs(new, [network(1)], example=EXAMPLE, step="alternating", before="conv2")
    odd, even = (gradients(sum(condition(batch())[0].values()), new) for _ in range(2))
    assert all(g is not None for g in odd)
    moved = {name for (name, _), g in zip(new.named_parameters(), even, strict=True) if g is not None}
    assert moved == {n for n, _ in new.named_parameters() if n.split(".")[0] in ("conv1", "bn1", "conv2")}
    assert condition.state_dict()["steps"].item() == 2


# The lens


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (28, 28), (33, 20), (224, 224)])
def test_lens_starts_as_glass_of_any_size(size):
    lens = Lens(3, scales=5, width=2).eval()
    images = torch.rand(1, 3, *size)
    assert torch.equal(lens(images), images)
    nn.init.normal_(lens.last.weight)
    assert lens(images).shape == images.shape and not torch.equal(lens(images), images)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_lens_of_any_width(width):
    assert Lens(1, scales=3, width=width)(torch.rand(2, 1, 16, 16)).shape == (2, 1, 16, 16)


def test_lens_objective_is_bounded():
    class Wrong(nn.Module):
        def forward(self, x):
            return F.one_hot(torch.zeros(len(x), dtype=torch.long), 5) * 1000.0 + x.flatten(1).sum(1, keepdim=True) * 0

    old, lens = Wrong(), Lens(1, 2, 2).double()
    images, labels, index = batch()
    terms, figures = LensTraining(lens, [old], w_adv=0.5)(Batch(images, torch.ones_like(labels), index))
    assert terms["recognition"].item() == pytest.approx(-0.5 * math.log(5))
    assert terms["reconstruction"].item() == 0 and figures["old_accuracy"].item() == 0
    assert not any(g.any() for g in gradients(terms["recognition"], lens) if g is not None)


def test_lens_terms_by_hand():
    lens, olds = Lens(1, 2, 2).double().eval(), [network(1), network(2)]
    nn.init.constant_(lens.last.bias, 0.5)
    images, labels, _ = batch()
    terms, _ = LensTraining(lens, olds, w_rec=3.0)(batch())
    assert terms["reconstruction"].item() == pytest.approx(0.75)
    mean = sum(old(images + 0.5).softmax(1) for old in olds) / 2
    nll = -mean.gather(1, labels[:, None]).log().clamp(min=-math.log(5))
    assert terms["recognition"].item() == pytest.approx(-nll.clamp(max=math.log(5)).mean().item(), rel=1e-10)


# A sequence


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", limit=30)


def small(seed: int) -> nn.Module:
    return build("cnn3_w8", num_classes=10, in_channels=1, image_size=8, seed=seed)


PLAN = Plan(epochs=16, lr=0.1, schedule="one_cycle", precision="float64")


@pytest.fixture(scope="module")
def extended(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    condition = partial(Hidden, layers="conv2", w_dis=1.0)
    run = partial(extend, small, digits, 2, condition, PLAN, batch_size=50, folder=folder,
                  layers=["conv1", "conv2", "conv3"])  # fmt: skip
    return run(), run, folder


def test_cka_falls_where_it_is_asked_to(extended):
    rows = extended[0].rows.set_index(["condition", "layer"])["similarity"]
    assert rows["hidden", "conv2"] < 0.25 * rows["none", "conv2"]
    assert rows["none", "conv2"] > 0.3
    assert (extended[0].rows["accuracy"] > 0.85).all()


def test_report_says_what_the_networks_do(extended, digits):
    made = extended[0]
    assert list(made.rows.columns) == ["seed", "k", "condition", "layer", "similarity", "accuracy", "old_accuracy",
                                       "ensemble_accuracy", "error_consistency", "jensen_shannon"]  # fmt: skip
    (old, labels), (new, _) = (predict(n, digits.loader("test", 500, dtype=torch.float64)) for n in made.networks)
    row = made.rows.iloc[0]
    right = [v.argmax(1) == labels for v in (old, new)]
    assert row.accuracy == right[1].double().mean().item() and row.old_accuracy == right[0].double().mean().item()
    a, b = row.old_accuracy, row.accuracy
    chance, seen = a * b + (1 - a) * (1 - b), (right[0] == right[1]).double().mean().item()
    assert row.error_consistency == pytest.approx((seen - chance) / (1 - chance), rel=1e-9)
    both = (old.softmax(1) + new.softmax(1)).argmax(1)
    assert row.ensemble_accuracy == (both == labels).double().mean().item()
    assert error_consistency(old, old, labels) == 1


def test_a_sequence_goes_on_from_its_files(extended):
    first, run, folder = extended
    files = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    again = run()
    assert again.rows.equals(first.rows)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}.keys() == files.keys() and len(files) == 3
    for a, b in zip(first.networks, again.networks, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(state(a), state(b), strict=True))


def test_subtraction_and_lens_in_longer_sequences(digits, tmp_path):
    plan = Plan(epochs=1, lr=0.05, schedule="constant", precision="float64")
    few = Dataset(digits.name, digits.train.limit(5), digits.test.limit(5), digits.classes, digits.mean, digits.std)
    through = lensed(few, plan, batch_size=25, scales=2, width=2, checkpoint=tmp_path / "lens{k}.safetensors")
    for condition in (partial(Hidden, layers="conv2", mode="subtraction"), through, partial(Outputs, step="pcgrad")):
        made = extend(small, few, 3, condition, plan, batch_size=25, folder=tmp_path, independent=False, layers=["bn2"])
        assert made.rows["k"].tolist() == [1, 2] and made.rows["similarity"].between(-1, 1).all()
    assert sorted(p.name for p in tmp_path.glob("lens*")) == ["lens1.safetensors", "lens2.safetensors"]


def test_files_tell_other_old_networks_apart(digits, tmp_path):
    plan = Plan(epochs=1, lr=0.05, schedule="constant", precision="float64")
    few = Dataset(digits.name, digits.train.limit(5), digits.test.limit(5), digits.classes, digits.mean, digits.std)

    def changing(new, olds, example, first):
        return Hidden(new, olds, "conv2", example=example, w_dis=first if len(olds) == 1 else 1.0)

    for first in (1.0, 2.0):
        condition = partial(changing, first=first)
        extend(small, few, 3, condition, plan, batch_size=25, folder=tmp_path, independent=False, layers=["bn2"])
    counts = [len(list(tmp_path.glob(f"extension-digits-s0-{k}-*"))) for k in range(3)]
    assert counts == [1, 2, 2]


def test_files_tell_builders_of_one_name_apart(digits, tmp_path):
    plan = Plan(epochs=1, lr=1e-9, schedule="constant", precision="float64")
    few = Dataset(digits.name, digits.train.limit(5), digits.test.limit(5), digits.classes, digits.mean, digits.std)

    def scaled(seed, scale):
        net = small(seed)
        net.fc.weight.data *= scale
        return net

    norms = []
    for model in (lambda seed: scaled(seed, 1.0), lambda seed: scaled(seed, 5.0), partial(scaled, scale=5.0)):
        made = extend(model, few, 2, None, plan, batch_size=25, folder=tmp_path, layers=["bn2"])
        norms.append(made.networks[0].fc.weight.norm().item())
    assert norms == pytest.approx([norms[0], 5 * norms[0], 5 * norms[0]])
    assert len(list(tmp_path.glob("extension-*"))) == 4


# Messages


def hidden(**changes):
    given = {"new": network(0), "olds": [network(1)], "layers": "conv2", "example": EXAMPLE} | changes
    return Hidden(**given)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"loss": "lincka"}, UnknownName, "there is no loss 'lincka' of hidden layers. Did you mean 'lin_cka'? "
         "Possible: " + ", ".join(NAMES)),
        ({"mode": "reverse"}, UnknownName, "there is no mode 'reverse' of hidden layers. Did you mean 'reversal'? "
         "Possible: extension, reversal, subtraction, unusable"),
        ({"sign": 2}, BadValue, "sign is 2; it must be -1 (away from the old networks) or 1 (towards them)."),
        ({"olds": []}, BadValue,
         "olds is empty: a condition needs one trained network at least. The first is trained alone."),
        ({"layers": []}, BadValue,
         "layers is empty; name one layer at least, one from the middle of the network, say."),
        ({"w_dis": -1}, BadValue, "w_dis is -1; it must be a number from 0 on."),
        ({"depth": -1}, BadValue, "depth is -1; it must be a whole number from 0 on; 0 is no approximator."),
        ({"kernel": 2, "depth": 1}, BadValue, "kernel is 2; it must be odd: 1, 3 or 5, say."),
        ({"mode": "reversal", "depth": 0}, BadValue,
         "depth is 0, but mode 'reversal' needs an approximator. Choose depth=1."),
        ({"olds": [network(1, width=3)], "loss": "exp_var", "depth": 0}, ShapeMismatch,
         "layer 'conv2' has 8 channels, the old activations 6, and exp_var compares channel by channel. "
         "Choose depth=1 for an approximator, or lin_cka."),
        ({"olds": [build("cnn3_w4", num_classes=7, in_channels=1, image_size=8).double()]}, ShapeMismatch,
         "the new network's output is (2, 5), the old ones' (2, 7). All must tell the same classes apart."),
    ],
)  # fmt: skip
def test_messages_of_hidden(changes, kind, message):
    with pytest.raises(kind) as caught:
        hidden(**changes)
    assert str(caught.value) == message


def test_message_of_an_unknown_layer():
    with pytest.raises(LayerNotFound, match="'conv9'"):
        hidden(layers="conv9")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"loss": "adp"}, UnknownName, "there is no output loss 'adp'. Possible: " + ", ".join(OUTPUT_LOSSES)),
        ({"gamma": 1.0}, UnknownName,
         "adaptive_diversity has no option 'gamma'. Possible: entropy, volume, eps"),
        ({"loss": "logit_cosine", "gamma": 1.0}, UnknownName, "logit_cosine has no option 'gamma'. It takes none."),
        ({"loss": "inverted_cross_entropy", "temperature": 0}, BadValue,
         "temperature is 0; it must be a number above 0."),
        ({"step": "alternating"}, BadValue, "step is 'alternating' and before is None: before names the last layer "
         "that alternating steps move, and is for step='alternating' alone."),
    ],
)  # fmt: skip
def test_messages_of_outputs(changes, kind, message):
    with pytest.raises(kind) as caught:
        Outputs(network(0), [network(1)], **({"example": EXAMPLE} | changes))
    assert str(caught.value) == message


def test_other_messages(digits):
    net = network(0)
    with pytest.raises(BadValue, match=r"^the new network is one of the old ones\. Build another for it\.$"):
        Outputs(net, [net], example=EXAMPLE)
    with pytest.raises(BadValue, match=r"^images are \(1, 1, 3, 3\); a lens needs sides of 4 pixels or more\.$"):
        Lens(1)(torch.zeros(1, 1, 3, 3))
    with pytest.raises(BadValue, match=r"^width is 0\.5; it must be a whole number from 1 on\.$"):
        Lens(1, width=0.5)
    with pytest.raises(BadValue, match=r"^count is 1; it must be a whole number from 2 on: a first network, and one"):
        extend("cnn3_w4", digits, 1)


def test_prices_are_paired_by_seed():
    rows = []
    for seed, base in enumerate((0.8, 0.9, 0.7)):
        for name, similar, right in (("independent", 0.5, 0.0), ("lin_cka", 0.1, -0.01)):
            for layer, more in (("conv1", 0.2), ("conv2", 0.0)):
                accuracy = base + right + 0.001 * seed * bool(right)
                rows.append({"seed": seed, "condition": name, "k": 1, "layer": layer, "similarity": similar + more,
                             "accuracy": accuracy, "ensemble_accuracy": base})  # fmt: skip
                rows.append(rows[-1] | {"k": 0, "similarity": 9.0})
    found = prices(pd.DataFrame(rows), "conv2")
    assert found["condition"].tolist() == ["lin_cka"] and found["n"].tolist() == [3]
    first = found.iloc[0]
    assert first["similarity"] == pytest.approx(-0.4) and first["ensemble_accuracy"] == 0
    known = effect([-0.01, -0.009, -0.008])
    assert (first["accuracy"], first["accuracy_low"], first["accuracy_high"]) == pytest.approx(
        (known.mean, known.low, known.high)
    )
