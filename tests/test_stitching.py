"""Stitching as an experiment: small networks trained on the digits, real data all the way through."""

import copy
import gc
import math
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from reptrans.checkpoints import load_tensors, save_tensors, trained
from reptrans.data import Dataset, Loader, Split, load_dataset
from reptrans.errors import BadCheckpoint, BadData, BadValue, CannotCut, LayerNotFound, ShapeMismatch, UnknownName
from reptrans.experiments.stitched import Stitching, StitchingSettings
from reptrans.experiments.stitching import StitchingRun, layer_pairs, network_pairs, stitch_across, stitch_networks
from reptrans.layers import end, front
from reptrans.models import build
from reptrans.notebook import spread
from reptrans.similarity import linear_cka
from reptrans.stitching import Stitch, StitchedNetwork, frozen, mask_matrix, train_stitch
from reptrans.stitching.direct import DIRECT
from reptrans.stitching.frozen import Seen, collect_moments, kept
from reptrans.training import Plan, accuracy, classification_loss, evaluate, predict

PLAN = Plan(epochs=4, lr=0.1, schedule="one_cycle", precision="float64", portable=True)
QUICK = {"direct": "", "epochs": 0, "batch_size": 100, "dtype": "float64", "device": "cpu"}
RUN = {"image_size": 8, "limit": 60, "front_model": "cnn3_w4", "end_model": "cnn3_w4", "train_batch_size": 20}


@pytest.fixture(scope="module", autouse=True)
def data_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("REPTRANS_DATA", str(folder))
        yield folder


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", image_size=8, limit=60)


@pytest.fixture(scope="module")
def nets(digits):
    return tuple(trained("cnn3_w4", digits, seed, plan=PLAN, batch_size=20) for seed in (0, 1))


@pytest.fixture(scope="module")
def at_bn2(digits, nets):
    """One pair stitched in every way, with a little training."""
    stitching = Stitching(*nets, [("bn2", "bn2")], digits, settings(direct="all", epochs=2, lr=1e-2))
    return stitching, stitching.stitch("bn2", "bn2")


def settings(**changes):
    return StitchingSettings(**(QUICK | changes))


def run_settings(**changes):
    return StitchingRun(**(QUICK | RUN | changes))


def few_of(digits, each=5):
    return replace(digits, train=digits.train.limit(each), test=digits.test.limit(each))


def stitch(digits, nets, layers="bn2", seed=0, **changes):
    pair = (layers, layers) if isinstance(layers, str) else layers
    return Stitching(*nets, [pair], digits, settings(**changes), seed=seed).stitch(*pair)


def message(error, function, *arguments, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    return str(caught.value)


def images_of(dataset, part="test"):
    split = getattr(dataset, part)
    return next(iter(dataset.loader(part, len(split), dtype=torch.float64))).images


def channels_as_rows(x):
    return x.movedim(1, -1).flatten(0, -2)


# What must hold exactly


@pytest.mark.parametrize("layer", ["conv1", "bn2", "relu3", "pool1"])
def test_network_stitched_to_itself_is_the_network(digits, nets, layer):
    net = nets[0]
    done = stitch(digits, (net, net), layer, init="eye", direct="identity,least squares")
    assert list(done.rows["matching"]) == ["identity", "least squares", "start"]
    own = net(images_of(digits))
    assert torch.equal(done.network(images_of(digits)), own)
    exact = done.rows[done.rows["matching"] != "least squares"]
    assert (exact["accuracy"] == exact["end_accuracy"]).all() and (exact["relative_accuracy"] == 1).all()
    assert (done.rows["agreement"] == 1).all()
    assert done.rows["r2"].to_numpy() == pytest.approx([1, 1, 1], abs=1e-9)
    assert done.rows["cka"].iloc[0] == pytest.approx(1, abs=1e-12)
    assert done.rows["accuracy"].iloc[0] > 0.7, "an untrained network would make the comparison weak"


@pytest.mark.parametrize("k", [1, 2, 3])
def test_least_squares_before_and_after_batch_norm_is_one_function(digits, nets, k):
    images = images_of(digits)
    conv, bn = (stitch(digits, nets, f"{name}{k}", init="ps_inv").network(images) for name in ("conv", "bn"))
    assert not torch.allclose(conv, nets[1](images), atol=1e-2)
    torch.testing.assert_close(conv, bn, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "loss", [{}, {"target": "soft_2"}, {"target": "soft_12", "temperature": 3.0}, {"cka_reg": 0.5}], ids=str
)
def test_activations_computed_once_give_the_same_training(digits, nets, loss):
    once, each = (stitch(digits, nets, epochs=2, lr=1e-2, memory=memory, **loss) for memory in (4.0, 0.0))
    for part in ("weight", "bias"):
        assert not torch.allclose(once.maps["task loss"][part], once.maps["start"][part], atol=1e-3)
        torch.testing.assert_close(once.maps["task loss"][part], each.maps["task loss"][part], rtol=0, atol=1e-12)
    pd.testing.assert_frame_equal(once.rows, each.rows, rtol=1e-12)
    pd.testing.assert_frame_equal(once.history, each.history, rtol=1e-10)


def test_kept_is_what_the_modules_say(digits, nets):
    part, loader = front(nets[0], "bn2"), digits.loader("train", 70, shuffle=True, dtype=torch.float64)
    tables = kept({"front": part, "own": nets[1]}, loader, 1.0)
    torch.testing.assert_close(tables["front"], part(images_of(digits, "train")), rtol=0, atol=1e-12)
    torch.testing.assert_close(tables["own"], nets[1](images_of(digits, "train")), rtol=0, atol=1e-12)
    assert loader.epoch == 0
    size = sum(table.nbytes for table in tables.values()) / 2**30
    both = {"front": part, "own": nets[1]}
    assert kept(both, loader, size * 1.001) is not None and kept(both, loader, size * 0.999) is None
    augmented = digits.loader("train", 70, augment="flip", dtype=torch.float64)
    assert kept({"front": part}, augmented, 1.0) is None


def test_what_was_seen_is_computed_once(digits, nets, monkeypatch):
    calls = Counter()
    for name in ("_tables", "logits_of"):
        real = getattr(frozen, name)
        monkeypatch.setattr(frozen, name, lambda *a, n=name, f=real: calls.update([n]) or f(*a))
    loader, seen = digits.loader("test", 50, dtype=torch.float64), Seen(1.0)
    for _ in range(2):
        found = seen.activations(nets[0], ["bn1", "bn2"], loader.plain())
        logits, labels = seen.logits(nets[0], loader)
    assert calls == {"_tables": 1, "logits_of": 1}
    images = images_of(digits)
    for layer in ("bn1", "bn2"):
        assert torch.equal(found[layer], torch.cat([front(nets[0], layer)(part) for part in images.split(50)]))
    assert torch.equal(logits.argmax(1), nets[0](images).argmax(1)) and torch.equal(labels, digits.test.labels)


def test_what_was_seen_long_ago_goes_first(digits, nets):
    loader = digits.loader("test", 50, dtype=torch.float64)
    size = {layer: front(nets[0], layer)(images_of(digits)).nbytes / 2**30 for layer in ("bn1", "bn2")}
    seen = Seen(size["bn1"] + 0.5 * size["bn2"])
    assert seen.activations(nets[0], ["bn1", "bn2"], loader) is None
    assert seen.activations(nets[0], ["bn1"], loader, share=0.5) is None
    first = seen.activations(nets[0], ["bn1"], loader)["bn1"]
    assert seen.activations(nets[0], ["bn1"], loader)["bn1"] is first
    seen.activations(nets[0], ["bn2"], loader)
    again = seen.activations(nets[0], ["bn1"], loader)["bn1"]
    assert again is not first and torch.equal(again, first)
    again = digits.loader("test", 50, augment="flip", dtype=torch.float64)
    assert seen.activations(nets[0], ["bn1"], again.over(loader.split)) is None


def test_of_many_networks_the_last_four_are_kept(digits):
    loader, seen = digits.loader("test", 50), Seen(1.0)
    built = [build("cnn3_w2", num_classes=10, in_channels=1, image_size=8, seed=seed).eval() for seed in range(5)]
    alive = [weakref.ref(net) for net in built]
    for net in built:
        seen.activations(net, ["bn1"], loader)
        seen.logits(net, loader)
    del net, built
    gc.collect()
    assert [ref() is not None for ref in alive] == [False, True, True, True, True]


def test_pairs_that_share_what_was_seen_are_stitched_as_those_that_do_not(digits, nets):
    s, pairs = settings(epochs=1, direct="least squares"), [("bn1", "bn1"), ("bn2", "bn2")]
    shared = Stitching(*nets, pairs, digits, s)
    few = Stitching(*nets, pairs, digits, s.model_copy(update={"memory": 0.0}))
    for pair in pairs:
        pd.testing.assert_frame_equal(shared.stitch(*pair).rows, few.stitch(*pair).rows, rtol=1e-12)


def test_batch_norm_starts_from_the_same_function(digits, nets):
    plain, normed = (stitch(digits, nets, batch_norm=bn, direct="ridge") for bn in (False, True))
    images = images_of(digits)
    assert normed.network.stitch.before is not None
    torch.testing.assert_close(plain.network(images), normed.network(images), rtol=1e-9, atol=1e-9)
    pd.testing.assert_frame_equal(plain.rows, normed.rows, rtol=1e-9)
    trained = stitch(digits, nets, batch_norm=True, epochs=1, lr=1e-2)
    assert list(trained.rows["matching"]) == ["start", "task loss"]
    assert not torch.equal(trained.network.stitch.before.running_mean, normed.network.stitch.before.running_mean)
    logits = free_network(digits, nets, "bn2", trained.maps["task loss"])(images)
    torch.testing.assert_close(logits, trained.network.eval()(images), rtol=1e-9, atol=1e-9)


def free_network(digits, nets, layer, dense):
    shape = tuple(front(nets[0], layer)(images_of(digits)[:1]).shape[1:])
    free = Stitch(shape, shape).to(dense["weight"]).set(dense["weight"], dense["bias"])
    return StitchedNetwork(front(nets[0], layer), free, end(nets[1], layer)).eval()


# Fit on train, score on test, nothing shared by accident


def test_fitted_on_train_and_scored_on_test(digits, nets, at_bn2):
    stitching, done = at_bn2
    moments = stitching.moments["bn2", "bn2"]
    x, y = (channels_as_rows(front(net, "bn2")(images_of(digits, "train"))) for net in nets)
    assert moments.count == len(digits.train) * 16
    torch.testing.assert_close(moments.mean_x, x.mean(0))
    torch.testing.assert_close(moments.xy, (x - x.mean(0)).T @ (y - y.mean(0)) / len(x))
    torch.testing.assert_close(moments.yy, torch.cov(y.T, correction=0))
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    torch.testing.assert_close(done.maps["least squares"]["weight"], solved[:-1].T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(done.maps["least squares"]["bias"], solved[-1], rtol=1e-8, atol=1e-8)
    row = done.rows.set_index("matching").loc["least squares"]
    error, spread_ = (x @ solved[:-1] + solved[-1] - y).square().sum(), (y - y.mean(0)).square().sum()
    assert row["r2"] == pytest.approx(1 - (error / spread_).item(), rel=1e-10)
    network = free_network(digits, nets, "bn2", done.maps["least squares"])
    found = evaluate(network, digits.loader("test", 100, dtype=torch.float64))
    assert row["accuracy"] == found["accuracy"] != evaluate(network, digits.loader(dtype=torch.float64))["accuracy"]
    assert row["cross_entropy"] == pytest.approx(found["cross_entropy"], rel=1e-12)


def test_rows_say_what_they_are(digits, nets, at_bn2):
    _, done = at_bn2
    rows, images = done.rows, images_of(digits)
    assert list(rows["matching"]) == [*DIRECT, "task loss"]
    said = {
        "dataset": "digits", "front_layer": "bn2", "end_layer": "bn2", "seed": 0, "init": "ps_inv", "epochs": 2,
        "mask": "identity", "form": "free", "target": "hard", "augment": "none",
        "fit_set": "train", "fit_images": 600, "score_set": "test", "score_images": len(digits.test),
    }  # fmt: skip
    for name, value in said.items():
        assert (rows[name] == value).all(), name
    own = [net(images) for net in nets]
    for role, logits in zip(("front", "end"), own, strict=True):
        assert (rows[f"{role}_accuracy"] == accuracy(logits, digits.test.labels).item()).all()
    assert not (rows["front_accuracy"] == rows["end_accuracy"]).any()
    assert (rows["relative_accuracy"] == rows["accuracy"] / rows["end_accuracy"]).all()
    last = rows.iloc[-1]
    agree = (done.network.eval()(images).argmax(1) == own[1].argmax(1)).double().mean().item()
    assert last["agreement"] == pytest.approx(agree) and last["agreement"] != last["accuracy"]
    x, y = (front(net, "bn2")(images).flatten(1) for net in nets)
    assert (rows["cka_images"] == len(digits.test)).all()
    assert last["cka"] == pytest.approx(linear_cka(x, y).item(), rel=1e-12)


def test_task_training_lowers_the_loss_it_is_trained_for(digits, nets, at_bn2):
    _, done = at_bn2
    assert list(done.history["epoch"]) == [1, 2] and done.history["task"].is_monotonic_decreasing
    rows = done.rows.set_index("matching")
    assert rows["cross_entropy"]["task loss"] < rows["cross_entropy"]["least squares"] - 0.05


def test_start_is_where_training_started_and_no_view_of_what_it_became(digits, nets):
    before = stitch(digits, nets, init="ridge")
    done = stitch(digits, nets, init="ridge", epochs=1, lr=1e-2)
    for part in ("weight", "bias"):
        assert torch.equal(done.maps["start"][part], before.maps["start"][part])
        assert not torch.allclose(done.maps["start"][part], done.maps["task loss"][part], atol=1e-3)
    columns = ["matching", "accuracy", "cross_entropy", "r2"]
    pd.testing.assert_frame_equal(done.rows[columns].head(1), before.rows[columns])
    assert done.rows["cross_entropy"].nunique() == 2
    with torch.no_grad():
        done.network.stitch.weight.zero_()
    assert done.maps["task loss"]["weight"].abs().sum() > 0


def test_seed_decides_the_order_of_the_data_whatever_the_start(digits, nets):
    first, again, other = (stitch(digits, nets, seed=seed, epochs=1, lr=1e-2).maps for seed in (0, 0, 1))
    for part in ("weight", "bias"):
        assert torch.equal(first["start"][part], other["start"][part])
        assert torch.equal(first["task loss"][part], again["task loss"][part])
        assert not torch.allclose(first["task loss"][part], other["task loss"][part], atol=1e-5)


def test_random_state_of_the_caller_stays(digits, nets):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    stitch(digits, nets, init="random", direct="least squares", epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_mask_comes_from_train_and_leaves_least_squares_alone(digits, nets):
    few, moments = replace(digits, test=digits.test.limit(3)), {}
    for part in ("train", "test"):
        loader = few.loader(part, 300, dtype=torch.float64)
        moments[part] = collect_moments(*nets, [("relu3", "relu3")], loader)["relu3", "relu3"]
    masks = {part: mask_matrix("semi-match", 16, 16, m, torch.Generator()) for part, m in moments.items()}
    assert not torch.equal(masks["train"], masks["test"])
    free = stitch(few, nets, "relu3", direct="least squares")
    masked = stitch(few, nets, "relu3", direct="least squares", mask="semi-match", epochs=1)
    for part in ("weight", "bias"):
        assert torch.equal(free.maps["least squares"][part], masked.maps["least squares"][part])
    scores = ["accuracy", "cross_entropy", "r2"]
    pd.testing.assert_frame_equal(free.rows[scores].head(1), masked.rows[scores].head(1))
    assert list(masked.rows["matching"]) == ["least squares", "start", "task loss"]
    for matching in ("start", "task loss"):
        assert torch.equal(masked.maps[matching]["weight"] != 0, masks["train"])


@pytest.mark.parametrize("shapes", [("bn1", "bn2"), ("relu2", "bn1")])
def test_maps_of_another_size_are_resized_and_not_passed_on_as_they_are(digits, nets, shapes):
    # Images of the fit set, so that the share of variance explained is that of the row.
    done, images = stitch(digits, nets, shapes), images_of(digits, "train")
    x, y = front(nets[0], shapes[0])(images), front(nets[1], shapes[1])(images)
    assert x.shape[2:] != y.shape[2:]
    x = F.interpolate(x, y.shape[2:], mode="bilinear", antialias=True)
    stitched = torch.einsum("qp,nphw->nqhw", done.maps["start"]["weight"], x)
    stitched = stitched + done.maps["start"]["bias"][:, None, None]
    assert stitched.shape == y.shape
    torch.testing.assert_close(done.network(images), end(nets[1], shapes[1])(stitched))
    error, spread_ = (stitched - y).square().sum(), (y - y.mean((0, 2, 3), keepdim=True)).square().sum()
    assert done.rows["r2"][0] == pytest.approx(1 - (error / spread_).item(), rel=1e-10)


def test_networks_are_left_as_they_were(digits, nets):
    nets = tuple(copy.deepcopy(net).train() for net in nets)
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    changes = {"direct": "all", "epochs": 1, "batch_norm": True, "target": "soft_12", "cka_reg": 1.0, "lr": 0.1}
    for more in ({}, {"augment": "standard"}, {"keep_skip": True}):
        stitch(digits, nets, **changes, **more)
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
        assert not any(module.training for module in net.modules())
        assert all(p.grad is None for p in net.parameters())
        assert not any(module._forward_hooks for module in net.modules())


# The loss and the forms


@pytest.mark.parametrize("target", ["hard", "soft_1", "soft_2", "soft_12", "soft_1_plus_2"])
def test_targets_in_closed_form(digits, nets, target):
    # With such a learning rate nothing moves, so that the epoch's mean is the loss of the start.
    done = stitch(digits, nets, target=target, temperature=2.0, epochs=1, lr=1e-300, batch_size=60)
    images, labels = images_of(digits, "train"), digits.train.labels
    logits, a, b = done.network(images), nets[0](images), nets[1](images)

    def soft(teacher):
        return -((teacher / 2).softmax(1) * (logits / 2).log_softmax(1)).sum(1).mean()

    expected = {
        "hard": classification_loss(logits, labels),
        "soft_1": soft(a),
        "soft_2": soft(b),
        "soft_12": (soft(a) + soft(b)) / 2,
        "soft_1_plus_2": soft((a + b) / 2),
    }
    assert len({round(value.item(), 6) for value in expected.values()}) == 5
    assert done.history["task"][0] == pytest.approx(expected[target].item(), rel=1e-10)
    assert done.history["accuracy"][0] == pytest.approx(accuracy(logits, labels).item(), rel=1e-12)


def test_positive_cka_reg_drives_cka_down_and_negative_up(digits, nets):
    images = images_of(digits, "train")

    def cka(weight):
        network = stitch(digits, nets, epochs=3, lr=3e-2, schedule="constant", cka_reg=weight).network
        stitched, own = network.stitch(network.front(images)), front(nets[1], "bn2")(images)
        return linear_cka(stitched.flatten(1), own.flatten(1)).item()

    down, without, up = cka(10.0), cka(0.0), cka(-10.0)
    assert down < without - 0.05 and up > without + 0.005


def test_cka_and_l1_terms_in_closed_form(digits, nets):
    done = stitch(digits, nets, epochs=1, lr=1e-300, batch_size=600, cka_reg=-0.5, l1=2.0)
    images = images_of(digits, "train")
    stitched, own = done.network.stitch(done.network.front(images)), front(nets[1], "bn2")(images)
    expected = -0.5 * linear_cka(stitched.flatten(1), own.flatten(1)).item()
    assert done.history["cka"][0] == pytest.approx(expected, rel=1e-10)
    assert done.history["l1"][0] == pytest.approx(2 * done.maps["start"]["weight"].abs().mean().item(), rel=1e-12)


def test_l1_shrinks_the_weights(digits, nets):
    changes = {"epochs": 3, "lr": 1e-2, "schedule": "constant"}
    plain, shrunk = (stitch(digits, nets, l1=l1, **changes).maps["task loss"]["weight"] for l1 in (0.0, 100.0))
    assert shrunk.abs().mean() < 0.8 * plain.abs().mean()


@pytest.mark.parametrize("init", ["ps_inv", "random"])
def test_forms_hold_through_training(digits, nets, init):
    low = stitch(digits, nets, "bn3", form="low rank", rank=3, init=init, epochs=1, lr=1e-2).maps
    for map_ in low.values():
        assert torch.linalg.matrix_rank(map_["weight"], rtol=1e-9) == 3
    turned = stitch(digits, nets, "bn3", form="orthogonal", init=init, epochs=1, lr=1e-2).maps
    for map_ in turned.values():
        gram = map_["weight"] @ map_["weight"].T
        torch.testing.assert_close(gram, gram[0, 0] * torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-9)
    for maps in (low, turned):
        assert not torch.allclose(maps["start"]["weight"], maps["task loss"]["weight"], atol=1e-3)


def test_train_stitch_trains_a_network_of_ones_own(digits, nets):
    network = free_network(digits, nets, "bn2", {"weight": torch.eye(8).double(), "bias": torch.zeros(8).double()})
    loader = digits.loader("train", 100, shuffle=True, dtype=torch.float64)
    plan = Plan(epochs=3, optimiser="adam", lr=1e-2, precision="float64")
    history = train_stitch(network, loader, plan, target="soft_2", parents=nets)
    assert list(history.columns) == ["epoch", "step", "lr", "task", "accuracy"]
    assert history["task"].is_monotonic_decreasing and list(history["step"]) == [6, 12, 18]
    assert not network.stitch.training and not network.front.training


def test_augmented_training(digits, nets):
    plain, moved = (stitch(digits, nets, epochs=1, augment=augment) for augment in ("none", "standard"))
    assert (moved.rows["augment"] == "standard").all() and (plain.rows["augment"] == "none").all()
    # Both the closed form and the training see the augmented images; the scores and the networks' own do not.
    for matching in ("start", "task loss"):
        assert not torch.allclose(plain.maps[matching]["weight"], moved.maps[matching]["weight"], atol=1e-3)
    assert plain.rows["end_accuracy"][0] == moved.rows["end_accuracy"][0]
    again = stitch(digits, nets, epochs=1, augment="standard")
    assert torch.equal(again.maps["task loss"]["weight"], moved.maps["task loss"]["weight"])


def test_precision_of_the_settings(digits, nets):
    changes = {"direct": "least squares", "epochs": 1, "lr": 1e-3}
    double = stitch(digits, nets, **changes)
    single = stitch(digits, tuple(copy.deepcopy(net) for net in nets), dtype="float32", **changes)
    half = stitch(digits, tuple(copy.deepcopy(net) for net in nets), dtype="bfloat16", **changes)
    for done, dtype in ((double, torch.float64), (single, torch.float32), (half, torch.float32)):
        assert {value.dtype for map_ in done.maps.values() for value in map_.values()} == {dtype}
    for matching in ("least squares", "task loss"):
        a, b = double.maps[matching]["weight"], single.maps[matching]["weight"]
        assert 0 < (a - b).abs().max() < 1e-3
    assert math.isfinite(half.rows["cross_entropy"].iloc[-1])


# Networks of all kinds


def test_inside_a_residual_block_only_with_the_bypass(digits):
    net = build("resnet8", in_channels=1, image_size=8).double().eval()
    layer = next(name for name, m in net.named_modules() if name.startswith("layer2") and name.endswith("conv1"))
    text = message(CannotCut, stitch, digits, (net, net), layer)
    assert text.startswith(f"Layer {layer!r} of") and "ask for keep_skip=True" in text
    done = stitch(few_of(digits), (net, net), layer, init="eye", keep_skip=True, direct="identity")
    images = images_of(digits)[:50]
    assert torch.equal(done.network(images), net(images))
    assert (done.rows["agreement"] == 1).all() and (done.rows["accuracy"] == done.rows["end_accuracy"]).all()
    other = build("resnet8", in_channels=1, image_size=8, seed=1).double().eval()
    history = stitch(few_of(digits), (net, other), layer, keep_skip=True, epochs=2, batch_size=50, lr=1e-2).history
    assert history["task"].is_monotonic_decreasing


def test_widths_and_architectures_may_differ(digits, nets):
    wide = build("cnn3_w8", in_channels=1, image_size=8, seed=1).double().eval()
    done = stitch(few_of(digits), (nets[0], wide), direct="all", epochs=1)
    assert list(done.rows["matching"]) == [*(kind for kind in DIRECT if kind != "identity"), "task loss"]
    assert done.maps["least squares"]["weight"].shape == (16, 8)
    vgg = build("vgg4", in_channels=1, image_size=8).double().eval()
    layer = next(name for name, m in vgg.named_modules() if isinstance(m, nn.MaxPool2d))
    mixed = stitch(few_of(digits), (nets[0], vgg), ("bn2", layer), direct="least squares", epochs=1)
    shape = front(vgg, layer)(images_of(digits)[:1]).shape
    assert mixed.maps["task loss"]["weight"].shape == (shape[1], 8)
    assert mixed.network(images_of(digits)[:3]).shape == (3, 10)
    assert message(ShapeMismatch, stitch, digits, (nets[0], wide), init="eye") == (
        "init 'eye' needs equal numbers of channels; front has 8, end has 16. Try 'ps_inv'."
    )


@pytest.mark.parametrize("layer", ["fc1", "relu2"])
def test_hidden_linear_layers(digits, layer):
    net, other = (build("dense", in_channels=1, image_size=8, seed=seed).double().eval() for seed in (0, 1))
    done = stitch(digits, (net, net), layer, init="eye", direct="least squares")
    assert torch.equal(done.network(images_of(digits)), net(images_of(digits)))
    assert done.rows["agreement"][0] == 1 and done.rows["r2"][0] == pytest.approx(1, abs=1e-6)
    both = stitch(digits, (net, other), layer, direct="procrustes", epochs=1)
    assert both.maps["task loss"]["weight"].shape == (300, 300)


def test_a_map_stitched_to_a_vector_needs_flatten(digits, nets):
    dense = build("dense", in_channels=1, image_size=8).double().eval()
    text = message(ShapeMismatch, stitch, digits, (nets[0], dense), ("pool2", "fc1"))
    assert text.startswith("Activations of shape (8, 2, 2) and (300,) share no channel map")
    done = stitch(digits, (nets[0], dense), ("pool2", "fc1"), flatten=True, direct="least squares", epochs=1)
    assert done.maps["task loss"]["weight"].shape == (300, 32)


class Branching(nn.Module):
    """cnn3 with code that looks at values, which no tracer can follow."""

    def __init__(self, net):
        super().__init__()
        self.body = net

    def forward(self, images):
        logits = self.body(images)
        return logits if logits.abs().max() < 1e9 else logits * 0


def test_a_network_that_cannot_be_traced(digits, nets):
    pair = tuple(Branching(copy.deepcopy(net)) for net in nets)
    changes = {"direct": "least squares,procrustes", "epochs": 1, "lr": 1e-2, "target": "soft_2"}
    hooked, traced = stitch(digits, pair, "body.bn2", **changes), stitch(digits, nets, "bn2", **changes)
    names = ["front_layer", "end_layer"]
    pd.testing.assert_frame_equal(hooked.rows.drop(columns=names), traced.rows.drop(columns=names), rtol=1e-10)
    same = stitch(digits, (pair[0], pair[0]), "body.bn2", init="eye")
    assert torch.equal(same.network(images_of(digits)), nets[0](images_of(digits)))
    assert message(CannotCut, layer_pairs, run_settings(layer="all"), *pair) == (
        "Branching cannot be traced, so its separating layers are not known; name a layer, or give example=images."
    )


def coloured(n=24, side=16, classes=10):
    g = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2 * n, 3, side, side), generator=g, dtype=torch.uint8)
    labels = torch.arange(2 * n) % classes
    parts = Split(images[:n], labels[:n]), Split(images[n:], labels[n:])
    return Dataset("coloured", *parts, tuple(map(str, range(classes))), (0.5,) * 3, (0.25,) * 3)


def vit(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=10)
        nn.init.normal_(net.heads.head.weight)  # torchvision starts it at 0, so that all logits would agree
        return net.double().eval()


def test_tokens_of_a_transformer():
    data, net, layer = coloured(), vit(0), "encoder.layers.encoder_layer_0"
    done = stitch(data, (net, net), layer, init="eye", direct="identity", batch_size=8)
    # Where gradients are asked for, torch's attention takes another path, with other rounding.
    with torch.no_grad():
        own = net(images_of(data))
        assert own.std() > 0.1
        assert torch.equal(done.network(images_of(data)), own)
    assert (done.rows["agreement"] == 1).all()
    both = stitch(data, (net, vit(1)), layer, direct="least squares", epochs=3, batch_size=8, lr=1e-2)
    assert both.maps["task loss"]["weight"].shape == (8, 8)
    assert both.history["task"].is_monotonic_decreasing


def test_vit_b_16_with_itself():
    net, layer = build("torchvision/vit_b_16", image_size=224).eval(), "encoder.layers.encoder_layer_5"
    nn.init.normal_(net.heads.head.weight, generator=torch.Generator().manual_seed(0))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        part = front(net, layer)
        shape = tuple(part(image).shape[1:])
        assert shape == (197, 768)
        identity = Stitch(shape, shape).set(torch.eye(768), torch.zeros(768))
        own = net(image)
        assert own.std() > 0.1
        assert torch.equal(StitchedNetwork(part, identity, end(net, layer)).eval()(image), own)


def several_labels():
    g = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (90, 1, 8, 8), generator=g, dtype=torch.uint8)
    labels = (images.double().flatten(2).unflatten(2, (4, 16)).mean(3)[:, 0, :3] > 127).byte()
    parts = Split(images[:60], labels[:60]), Split(images[60:], labels[60:])
    return Dataset("several", *parts, ("a", "b", "c"), (0.5,), (0.3,))


def test_several_true_labels_at_once():
    data = several_labels()
    nets = tuple(build("cnn3_w4", num_classes=3, in_channels=1, image_size=8, seed=s).double().eval() for s in (0, 1))
    done = stitch(data, nets, direct="least squares,procrustes", epochs=5, batch_size=20, lr=1e-2)
    assert done.history["task"].is_monotonic_decreasing
    logits, labels = done.network.eval()(images_of(data)), data.test.labels.double()
    row = done.rows.iloc[-1]
    assert row["accuracy"] == pytest.approx(((logits > 0) == (labels > 0)).double().mean().item(), rel=1e-12)
    expected = F.binary_cross_entropy_with_logits(logits, labels).item()
    assert row["cross_entropy"] == pytest.approx(expected, rel=1e-10)
    own = nets[1](images_of(data)) > 0
    assert row["agreement"] == pytest.approx(((logits > 0) == own).double().mean().item(), rel=1e-12)
    assert message(BadValue, stitch, data, nets, target="soft_1", epochs=1) == (
        "target 'soft_1' is a softmax over classes that exclude each other, but several has several true labels at "
        "once. Choose target='hard'."
    )


# From names to networks, layers and rows


def test_layer_pairs(nets):
    def pairs(**changes):
        return layer_pairs(run_settings(**changes), *nets)

    assert pairs(layer="bn1, bn3") == [("bn1", "bn1"), ("bn3", "bn3")]
    assert pairs(front_layer="bn1", end_layer="bn2") == [("bn1", "bn2")]
    assert pairs(layer="bn1,bn2", end_layer="bn2,bn3") == [("bn1", "bn2"), ("bn2", "bn3")]
    every = [a for a, b in pairs(layer="all") if a == b]
    assert every[:5] == ["conv1", "bn1", "relu1", "pool1", "conv2"] and "fc" not in every
    assert message(BadValue, pairs, front_layer="bn1,bn2", end_layer="bn3") == (
        "2 front layers and 1 end layers make no pairs; give as many of both."
    )
    assert message(BadValue, pairs, layer=" , ") == (
        "no layer is named. Give layer a name, names joined by commas, or all."
    )
    strange = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    assert message(CannotCut, layer_pairs, run_settings(layer="all"), nets[0], strange) == (
        "The two networks share no name of a layer; name front_layer and end_layer."
    )
    lenet = build("lenet", in_channels=1, image_size=16)
    shared = layer_pairs(run_settings(layer="all"), nets[0], lenet)
    assert shared[0] == ("conv1", "conv1") and ("bn1", "bn1") not in shared


def test_pairs_of_networks_go_around(digits):
    named = [(seed, a.name, b.name) for seed, a, b in network_pairs(run_settings(seeds=3, layer="bn2"), digits)]
    assert named == [(i, f"cnn3_w4 seed {i}", f"cnn3_w4 seed {(i + 1) % 3}") for i in range(3)]
    ((_, a, b),) = network_pairs(run_settings(seeds=1, layer="bn2"), digits)
    assert (a.name, b.name) == ("cnn3_w4 seed 0", "cnn3_w4 seed 1")


def test_pairs_of_checkpoints(digits, nets, tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path, net in zip(paths, (*nets, nets[0]), strict=True):
        save_tensors(path, dict(net.state_dict()))
    a, b, c = map(str, paths)

    def found(**changes):
        return network_pairs(run_settings(layer="bn2", **changes), digits)

    pairs = found(front_checkpoint=a, end_checkpoint=b, seeds=2)
    assert [(seed, f.name, e.name) for seed, f, e in pairs] == [
        (i, f"cnn3_w4 {tmp_path.name}/a", f"cnn3_w4 {tmp_path.name}/b") for i in (0, 1)
    ]
    assert torch.equal(pairs[1][2].get().eval()(images_of(digits)), nets[1](images_of(digits)))
    assert [(f.name[-1], e.name[-1]) for _, f, e in found(front_checkpoint=f"{a},{b}", end_checkpoint=f"{b},{c}")] == [
        ("a", "b"), ("b", "c"),
    ]  # fmt: skip
    assert [e.name for *_, e in found(front_checkpoint=f"{a},{b},{c}", end_checkpoint=a)] == [pairs[0][1].name] * 3
    assert message(BadValue, found, front_checkpoint=f"{a},{b},{c}", end_checkpoint=f"{a},{b}") == (
        "3 front checkpoints and 2 end checkpoints make no pairs; give as many of one as of the other, or one of "
        "either."
    )


LAYERS = "conv1, bn1, relu1, pool1, conv2, bn2, relu2, pool2, conv3, bn3, relu3"


@pytest.mark.parametrize(
    ("changes", "error", "start"),
    [
        ({"layer": "bn9"}, LayerNotFound, "Sequential has no layer 'bn9'. Did you mean 'bn1' or 'bn2' or 'bn3'? Its "
         f"layers: {LAYERS}"),
        ({"layer": "bn2,bn3", "end_layer": "bn1"}, BadValue, "2 front layers and 1 end layers make no pairs"),
        ({"layer": ""}, BadValue, "no layer is named."),
        ({"end_model": "cnn_w4"}, UnknownName, "There is no network 'cnn_w4'. "),
        ({"end_model": "tiny10"}, ShapeMismatch, "tiny10 needs images of at least 27 x 27 pixels, image_size is 8 x 8"),
        ({"augment": "flop"}, UnknownName, "there is no augmentation 'flop'"),
        ({"device": "abacus"}, BadValue, "there is no device 'abacus' here."),
        ({"end_model": "cnn3_w8", "init": "eye"}, ShapeMismatch, "init 'eye' needs equal numbers of channels; front "
         "has 8, end has 16. Try 'ps_inv'."),
        ({"form": "orthogonal", "init": "ridge"}, BadValue, "init 'ridge' is not orthogonal."),
        ({"form": "low rank", "init": "eye"}, BadValue, "init 'eye' has full rank."),
        ({"form": "low rank", "rank": 9}, BadValue, "rank 9 is more than the 8 channels at bn2 allow."),
        ({"init": "sparse", "rank": 9}, BadValue, "rank 9 is more than the 8 channels at bn2 allow."),
        ({"direct": "reduced rank", "rank": 9}, BadValue, "rank 9 is more than the 8 channels at bn2 allow."),
        ({"front_checkpoint": "nowhere.pt"}, BadValue, "There is no checkpoint nowhere.pt. Give the path of a "
         ".safetensors, .pt or .pth file."),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_network_is_trained(
    digits, monkeypatch, tmp_path, changes, error, start
):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    p = run_settings(**({"layer": "bn2"} | changes))
    assert message(error, stitch_networks, p, digits, tmp_path.joinpath).startswith(start)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"init": "psinv"}, "Input should be 'random', 'perm', 'eye', 'ones-zeros', 'ps_inv'"),
        ({"mask": "semi"}, "Input should be 'identity', 'semi-match'"),
        ({"form": "masked"}, "Input should be 'free', 'low rank' or 'orthogonal'"),
        ({"target": "soft"}, "Input should be 'hard', 'soft_1'"),
        ({"direct": "least square"}, "there is no 'least square'. Did you mean 'least squares'?"),
        ({"seeds": 0}, "greater than or equal to 1"),
        ({"lr": 0.0}, "greater than 0"),
        ({"layers": "bn1"}, "layers = 'bn1': there is no such parameter. Did you mean 'end_layer' or 'layer'?"),
        ({"mask": "semi-match", "init": "eye"},
         "init 'eye' puts weights where mask 'semi-match' has none; take ps_inv, random or ones-zeros"),
        ({"mask": "assignment", "form": "orthogonal"},
         "mask 'assignment' and form 'orthogonal' exclude each other; leave one at its default"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_say_what_is_possible(changes, text):
    assert text in message((BadValue, UnknownName), run_settings, **changes)


def test_class_counts_must_agree(digits, nets, tmp_path):
    seven = build("cnn3_w4", num_classes=7, in_channels=1, image_size=8).double().eval()
    for role, pair in (("end", (nets[0], seven)), ("front", (seven, nets[0]))):
        assert message(ShapeMismatch, stitch, digits, pair) == (
            f"The {role} network Sequential tells 7 classes apart, but digits has 10. Choose the data set it was "
            "trained on, or a network with 10 outputs."
        )
    path = tmp_path / "seven.safetensors"
    save_tensors(path, dict(seven.state_dict()))
    p = run_settings(front_checkpoint=str(path), layer="bn2")
    assert message(BadCheckpoint, network_pairs, p, digits) == (
        f"{path} does not fit: the checkpoint has fc.weight (7, 16), the network needs (10, 16) (0 missing, "
        "0 unexpected, 2 of another shape, of 23)."
    )


def test_rows_arrays_and_history_of_several_seeds(digits, nets, tmp_path):
    p = run_settings(seeds=2, layer="bn2,bn3", form="low rank", rank=3, direct="least squares", epochs=2)
    rows, arrays, history = stitch_networks(p, digits, tmp_path.joinpath)
    assert len(rows) == 2 * 2 * 3 and len(history) == 2 * 2 * 2
    assert list(rows.columns[:3]) == ["dataset", "front", "end"]
    assert list(rows["seed"].unique()) == [0, 1] and (rows["fit_set"] == "train").all()
    assert set(zip(rows["front"], rows["end"], strict=True)) == {
        ("cnn3_w4 seed 0", "cnn3_w4 seed 1"), ("cnn3_w4 seed 1", "cnn3_w4 seed 0"),
    }  # fmt: skip
    kept = sorted(file.name for file in tmp_path.iterdir())
    assert len(kept) == 4 and all(
        re.fullmatch(rf"seed{i}-bn{k}-[0-9a-f]{{8}}\.safetensors", name)
        for (i, k), name in zip([(0, 2), (0, 3), (1, 2), (1, 3)], kept, strict=True)
    )
    # What is stored is the whole map, of whatever form, so that a free stitch gives the row's scores again.
    for row in rows.itertuples():
        name = f"seed{row.seed}-{row.front_layer}/{row.matching}"
        dense = {part: arrays[f"{name}/{part}"] for part in ("weight", "bias")}
        pair = nets if row.seed == 0 else nets[::-1]
        logits, labels = predict(free_network(digits, pair, row.front_layer, dense),
                                 digits.loader("test", dtype=torch.float64))  # fmt: skip
        assert accuracy(logits, labels).item() == row.accuracy
        assert classification_loss(logits, labels).item() == pytest.approx(row.cross_entropy, rel=1e-10)
    table = spread(rows, ["front_layer", "matching"], ["accuracy"])
    one = rows[(rows["front_layer"] == "bn3") & (rows["matching"] == "task loss")]["accuracy"]
    cell = table[(table["front_layer"] == "bn3") & (table["matching"] == "task loss")].iloc[0]
    assert cell["n"] == 2 and one.std() > 0
    places = 3  # of the whole column, whose smallest spread is below 0.01
    assert cell["accuracy"].split() == [f"{one.mean():.{places}f}", "±", f"{one.std():.{places}f}"]


def test_every_front_is_stitched_to_every_end_by_least_squares(digits, nets, tmp_path):
    p = run_settings(seeds=2, layer="bn1,bn2,bn3", across=2, init="random", flatten=True, direct="ridge", epochs=1)
    rows = stitch_across(p, digits, tmp_path.joinpath)
    rows = rows[rows["matching"] == "least squares"]
    cells = list(zip(rows["seed"], rows["front_layer"], rows["end_layer"], strict=True))
    assert cells == [(seed, f, e) for seed in (0, 1) for f in ("bn1", "bn3") for e in ("bn1", "bn3")]
    alone = stitch(digits, nets, ("bn3", "bn1"), direct="least squares", epochs=0).rows
    cell = rows[(rows["seed"] == 0) & (rows["front_layer"] == "bn3") & (rows["end_layer"] == "bn1")]
    assert cell["accuracy"].item() == alone["accuracy"].item()
    assert all(file.name.startswith("across-") for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes", [{"layer": "bn2"}, {"layer": "bn1,bn2", "across": 0}, {"layer": "bn1,bn2", "across": 1}]
)
def test_one_pair_of_layers_makes_no_grid(digits, tmp_path, changes):
    assert stitch_across(run_settings(**changes), digits, tmp_path.joinpath).empty


def test_finished_pieces_are_those_of_the_same_test_images(digits, tmp_path):
    p = run_settings(seeds=1, layer="bn2", direct="least squares", epochs=0)
    # Of as many images as before.
    other = replace(digits, test=digits.test.select(torch.arange(len(digits.test)).flip(0) // 2))
    rows = [stitch_networks(p, data, tmp_path.joinpath)[0] for data in (digits, digits, other)]
    pd.testing.assert_frame_equal(rows[0], rows[1])
    fresh = stitch_networks(p, other, (tmp_path / "fresh").joinpath)[0]
    pd.testing.assert_frame_equal(rows[2], fresh)
    assert not rows[2]["cross_entropy"].equals(rows[0]["cross_entropy"])


@pytest.mark.parametrize("change", ["end", "l1", "target"])
def test_a_kept_training_of_another_end_or_loss_is_refused(digits, nets, tmp_path, change):
    def kept(end_net, **more):
        stitched = StitchedNetwork(front(nets[0], "bn2"), Stitch((8, 8, 8), (8, 8, 8)).double(), end(end_net, "bn2"))
        train_stitch(
            stitched, digits.loader("train", 50, dtype=torch.float64), PLAN, checkpoint=tmp_path / "kept", **more
        )

    kept(nets[1])
    kept(nets[1])
    other = {
        "end": (nets[0], {}),
        "l1": (nets[1], {"l1": 1.0}),
        "target": (nets[1], {"target": "soft_2", "parents": nets}),
    }
    with pytest.raises(BadCheckpoint, match="belongs to another training: objective"):
        kept(other[change][0], **other[change][1])


def test_an_end_that_answers_nothing_is_refused(digits, nets):
    broken = copy.deepcopy(nets[1])
    with torch.no_grad():
        broken.fc.bias[0] = math.nan
    with pytest.raises(BadData, match="the network's answers to .* images are not numbers"):
        stitch(digits, (nets[0], broken))


def test_without_training_there_is_no_history(digits, tmp_path):
    p = run_settings(seeds=2, layer="bn2", init="eye", epochs=0)
    rows, _, history = stitch_networks(p, digits, tmp_path.joinpath)
    assert list(rows["matching"]) == ["start", "start"] and history.empty
    assert rows["r2"].isna().all()


EPOCHS = 40  # long enough to be killed in the middle
LONG = {"seeds": 2, "layer": "bn3", "epochs": EPOCHS, "lr": 1e-2, "direct": "least squares", "train_epochs": 4}
SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from reptrans.experiments.stitching import StitchingRun, stitch_networks
p = StitchingRun(**{settings!r})
stitch_networks(p, p.load(), Path(sys.argv[1]).joinpath)
"""


def test_an_interrupted_run_goes_on_to_the_same_bits(digits, nets, tmp_path, monkeypatch):
    p = run_settings(**LONG)
    whole = stitch_networks(p, digits, (tmp_path / "whole").joinpath)
    broken = tmp_path / "broken"
    script = SCRIPT.format(settings=QUICK | RUN | LONG)
    end = {seed: path.stem.removeprefix(f"seed{seed}-bn3") for seed in (0, 1)
           for path in (tmp_path / "whole").glob(f"seed{seed}-bn3-*")}  # fmt: skip
    training = broken / f"seed1-bn3{end[1]}.training"
    process = subprocess.Popen([sys.executable, "-c", script, str(broken)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not training.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(load_tensors(training)[1]["rows"])
    assert 0 < done < EPOCHS and not training.with_suffix(".safetensors").exists()
    stored = broken / f"seed0-bn3{end[0]}.safetensors"
    first = stored.stat().st_mtime_ns

    started, order = [], Loader.order

    def noted(loader, epoch):
        if loader.shuffle:
            started.append(epoch)
        return order(loader, epoch)

    monkeypatch.setattr(Loader, "order", noted)
    resumed = stitch_networks(p, digits, broken.joinpath)
    assert started == list(range(done, EPOCHS)), "it went on after the last whole epoch"
    assert stored.stat().st_mtime_ns == first
    assert not training.exists()
    for a, b in ((whole[0], resumed[0]), (whole[2], resumed[2])):
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert list(whole[1]) == list(resumed[1])
    assert all(torch.equal(whole[1][name], resumed[1][name]) for name in whole[1])
