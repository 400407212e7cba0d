"""A transfer in training: the reference's steps, resuming, what the probe leaves alone, baselines, and messages."""

import math
from collections import OrderedDict

import pytest
import torch
from benchmarks.l2t_plain import PlainL2T
from l2t.networks import Again, batch, network, normal, toy
from torch import nn

from reptrans.data import Split
from reptrans.data.loader import Loader
from reptrans.errors import BadValue, Diverged, LayerNotFound, ShapeMismatch
from reptrans.l2t import METHODS, Answers, AttentionTransfer, Matching, Meta, Transfer, start_from
from reptrans.l2t.baselines import before_head
from reptrans.l2t.matching import look
from reptrans.models import build
from reptrans.training import Plan, fit

LAYERS = [(f"relu{a}", f"relu{b}") for a in (1, 2, 3) for b in (1, 2, 3)]
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def plan(**changes) -> Plan:
    settings = {"epochs": 1, "lr": 0.05, "nesterov": False, "schedule": "constant", "precision": "float64"}
    return Plan(**(settings | changes))


def train(transfer: Transfer, loader, p: Plan, **saving):
    return fit(
        transfer, transfer.modules_to_train(), loader, p, parameters=transfer.trained(),
        after_step=transfer.after_step, **saving,
    )  # fmt: skip


META = Meta(lr=0.01)


def made(meta: Meta | None = META, pairs=LAYERS, seed: int = 0, dropout: bool = False, **matching):
    target, source = network(seed), network(seed + 7, 8)
    target = with_dropout(target) if dropout else target
    example = batch().images
    return target, Transfer(
        target, source, [Matching(target, source, pairs, example, **matching)], meta, example=example, classes=5
    )


def with_dropout(net: nn.Sequential) -> nn.Sequential:
    """The same network, with dropout after relu2."""
    layers = list(net.named_children())
    place = [name for name, _ in layers].index("relu2") + 1
    return nn.Sequential(OrderedDict([*layers[:place], ("dropout", nn.Dropout(0.5)), *layers[place:]]))


@pytest.mark.parametrize("T", [1, 2, 3])
def test_outer_steps_are_those_of_the_authors(T):
    """Real step, probe, and Adam on f and g, one or two in a row."""
    target, transfer, state, one = toy(T)
    expected, met = state["T"][T], []

    def after_step(given, optimiser, due):
        want = expected[len(met)]
        if "theta_after_total_step" in want:
            for name, value in target.named_parameters():
                torch.testing.assert_close(value.detach(), want["theta_after_total_step"][f"t.{name}"], **EXACT)
        prepared, weights = due
        found = transfer.probe(given, optimiser, prepared, list(weights.values()))
        for name, value in want.get("theta_unrolled", {}).items():
            if name.startswith("t.") and f"target.{name[2:]}" in found.theta:
                torch.testing.assert_close(found.theta[f"target.{name[2:]}"], value, **EXACT)
        met.append(transfer.after_step(given, optimiser, due)["outer_loss"].item())
        assert met[-1] == pytest.approx(want["outer_loss"], rel=1e-9)
        assert [loss.item() for loss in found.losses] == pytest.approx(want["match_losses"][1:], rel=1e-9)
        for kind, layers in (("f", transfer.matching.weights.f), ("g", transfer.matching.weights.g)):
            for k, layer in enumerate(layers):
                for part in ("weight", "bias"):
                    value, key = getattr(layer, part), f"{k}.{part}"
                    torch.testing.assert_close(value.grad, want[f"meta_grad_{kind}"][key], **EXACT)
                    torch.testing.assert_close(value.detach(), want[f"{kind}_after_adam"][key], **EXACT)
        return {}

    def objective(given, progress):
        terms, figures, due = transfer(given, progress)
        total = sum(terms.values()).item()
        assert total == pytest.approx(expected[len(met)]["total_loss"], rel=1e-9)
        return terms, figures, due

    settings = plan(lr=state["lr"], momentum=state["momentum"], weight_decay=state["weight_decay"])
    fit(
        objective, transfer.modules_to_train(), Again(one, len(expected)), settings,
        parameters=transfer.trained(), after_step=after_step,
    )  # fmt: skip
    assert len(met) == len(expected)


def test_agrees_with_the_plain_scheme():
    """State copies and a sweep that recomputes everything: the same parameters after two outer steps."""
    one, source = batch(4), network(3, 8)
    ours, theirs = network(0), network(0)
    sgd = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3}
    plain = PlainL2T(theirs, source, LAYERS, one.images, **sgd)
    matching = Matching(ours, source, LAYERS, one.images, resize="bilinear")
    for k, g in enumerate(matching.weights.g):
        g.load_state_dict(plain.g[k].state_dict())
    with torch.no_grad():
        for t, names in matching.pairs.of_target.items():
            for part in ("weight", "bias"):
                joined = torch.cat([getattr(plain.r[LAYERS.index((s, t))], part) for s in names])
                getattr(matching.pairs.regressors[t], part).copy_(joined)
    train(Transfer(ours, source, [matching], Meta(), example=one.images), Again(one, 2), plan(**sgd))
    theirs.train()
    for _ in range(2):
        plain.step(one.images, one.labels)
    for name, value in ours.named_parameters():
        torch.testing.assert_close(value, theirs.get_parameter(name), **EXACT)
    for layers, others in ((matching.weights.f, plain.f), (matching.weights.g, plain.g)):
        for layer, other in zip(layers, others, strict=True):
            torch.testing.assert_close(layer.weight, other.weight, **EXACT)
            torch.testing.assert_close(layer.bias, other.bias, **EXACT)


@pytest.mark.parametrize("dropout", [False, True])
def test_the_probe_leaves_everything_but_f_and_g_alone(dropout):
    """Parameters, running statistics, momentum, modes and random state."""
    target, transfer = made(dropout=dropout)
    optimiser = torch.optim.SGD(transfer.trained(), lr=0.05, momentum=0.9)
    target.train()
    one = batch()
    terms, _, due = transfer(one)
    sum(terms.values()).backward(inputs=transfer.trained())
    optimiser.step()
    optimiser.zero_grad()

    def all_of_it():
        kept = [*target.state_dict().values(), *transfer.matching.pairs.state_dict().values()]
        return [t.clone() for t in kept] + [s["momentum_buffer"].clone() for s in optimiser.state.values()]

    before, phi = all_of_it(), [p.detach().clone() for p in transfer.matching.weights.parameters()]
    random, modes = torch.get_rng_state(), [m.training for m in target.modules()]
    assert transfer.after_step(one, optimiser, due)["outer_loss"].isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, all_of_it(), strict=True))
    assert torch.equal(random, torch.get_rng_state()) and modes == [m.training for m in target.modules()]
    assert all(m.track_running_stats for m in target.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(p.grad is None for p in transfer.trained())
    assert any((a != b).any() for a, b in zip(phi, transfer.matching.weights.parameters(), strict=True))


def test_probing_changes_no_real_step_but_through_f_and_g():
    """With a meta learning rate of 0 the training is the one without a probe, dropout included."""
    found = []
    for meta in (None, Meta(lr=0.0, weight_decay=0.0)):
        target, transfer = made(meta, dropout=True)
        train(transfer, Again(batch(), 3), plan())
        found.append([value.clone() for value in target.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("order", ["second", "first"])
def test_an_interrupted_training_goes_on_to_the_same_numbers(tmp_path, order):
    split = Split(normal(12, 1, 8, 8), torch.arange(12) % 5)
    meta, ends = Meta(lr=0.01, every=2, warmup=2, order=order), []

    def loader():
        return Loader(split, 4, mean=(0.0,), std=(1.0,), shuffle=True, seed=1, dtype=torch.float64)

    for stops in ([3], [1, 3]):
        target, transfer, rows = None, None, None
        for stop in stops:
            target, transfer = made(meta)

            def stopped(epoch, stop=stop):
                if epoch > stop:
                    raise KeyboardInterrupt
                return {}

            file = tmp_path / f"{len(stops)}.safetensors"
            try:
                rows = train(transfer, loader(), plan(epochs=3), checkpoint=file, every_epoch=stopped)
            except KeyboardInterrupt:
                assert file.exists() and stop == 1
        ends.append(([*target.state_dict().values(), *transfer.matching.state_dict().values()], rows, transfer.steps))
    (one, rows, steps), (other, resumed, _) = ends
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert rows.equals(resumed) and steps == 9
    assert rows["outer_loss"].notna().all()


@pytest.mark.parametrize(
    ("meta", "due"),
    [(Meta(), [0, 1, 2, 3, 4, 5]), (Meta(every=2), [0, 2, 4]), (Meta(every=2, warmup=3), [3, 5]), (Meta(T=0), [])],
)
def test_when_a_probe_is_due(meta, due):
    assert [step for step in range(6) if meta.due(step)] == due
    _, transfer = made(meta)
    rows, probed = [], []

    def after_step(one, optimiser, due):
        probed.append(bool(transfer.after_step(one, optimiser, due)))
        return {}

    fit(
        transfer,
        transfer.modules_to_train(),
        Again(batch(), 6),
        plan(),
        parameters=transfer.trained(),
        after_step=after_step,
    )
    assert [k for k, was in enumerate(probed) if was] == due and rows == []


def test_rows_tell_losses_and_lambdas():
    _, transfer = made(pairs=LAYERS[:2])
    rows = train(transfer, Again(batch(), 2), plan())
    assert {"cross_entropy", "matching", "accuracy", "outer_loss", "relu1 > relu1", "relu1 > relu2"} <= set(rows)
    assert rows["relu1 > relu1"].item() == pytest.approx(1.0, abs=0.2)


def test_matching_moves_target_and_regressors_but_neither_source_nor_weights():
    target, transfer = made(None)
    source = transfer._source[0]
    before = [v.clone() for v in (*source.state_dict().values(), *transfer.matching.weights.state_dict().values())]
    pairs = [v.clone() for v in transfer.matching.pairs.parameters()]
    source.train()
    train(transfer, Again(batch(), 2), plan())
    after = [*source.state_dict().values(), *transfer.matching.weights.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) and source.training
    assert all((a != b).any() for a, b in zip(pairs, transfer.matching.pairs.parameters(), strict=True))


def test_networks_that_work_in_place_are_copied_where_needed():
    """resnet20_w overwrites its batch norms' outputs: the same loss as with copies throughout."""
    target, source = (build("resnet20_w1", in_channels=1, num_classes=5, seed=k).double() for k in (0, 1))
    example = batch().images
    transfer = Transfer(
        target, source, [Matching(target, source, [("bn1", "layer1.0.bn1")], example)], Meta(), example=example
    )
    rows = train(transfer, Again(batch(), 2), plan(lr=0.01))
    assert rows["outer_loss"].notna().all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_precisions(precision):
    target, source = network(0).float(), network(1).float()
    one = batch()._replace(images=batch().images.float())
    transfer = Transfer(target, source, [Matching(target, source, LAYERS, one.images)], Meta(), example=one.images)
    assert train(transfer, Again(one, 2), plan(precision=precision))["outer_loss"].notna().all()


def test_divergence_in_the_probe_names_pair_step_and_learning_rate():
    target, transfer = made(pairs=LAYERS[:2])
    with pytest.raises(Diverged) as error:

        def after_step(one, optimiser, due):
            with torch.no_grad():
                transfer.matching.pairs.regressors["relu2"].bias.fill_(math.inf)
            return transfer.after_step(one, optimiser, due)

        fit(
            transfer,
            transfer.modules_to_train(),
            Again(batch(), 1),
            plan(lr=0.25),
            parameters=transfer.trained(),
            after_step=after_step,
        )
    text = str(error.value)
    assert text.startswith("the meta-gradient for the pair relu1 > relu") and " at step 1, learning rate 0.25; " in text
    assert text.endswith("Lower lr or beta, or lengthen warmup.")


def test_attention_transfer_by_hand():
    target, source = network(0), network(1, 8)
    one = batch()
    part = AttentionTransfer(target, source, [("relu1", "relu2")], one.images, weight=3.0)
    transfer = Transfer(target, source, [part], example=one.images)
    target.eval()
    terms, *_ = transfer(one)
    with torch.no_grad():
        s, t = (
            look(net.eval(), [layer], one.images, True)[1][layer]
            for net, layer in ((source, "relu1"), (target, "relu2"))
        )
    s = nn.functional.adaptive_avg_pool2d(s, 4)
    a, b = (x.square().mean(1).flatten(1) for x in (s, t))
    expected = 3 * (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).square().sum(1).mean()
    assert terms["attention"].item() == pytest.approx(expected.item(), rel=1e-12)
    same = AttentionTransfer(target, target, [("relu2", "relu2")], one.images)
    assert Transfer(target, target, [same], example=one.images)(one)[0]["attention"].item() == pytest.approx(
        0, abs=1e-14
    )


@pytest.mark.parametrize("pair", [("relu1", "relu3"), ("relu3", "relu1")])
def test_attention_is_compared_at_the_smaller_side(pair):
    net, one = network(0).eval(), batch()
    part = AttentionTransfer(net, net, [pair], one.images)
    found = Transfer(net, net, [part], example=one.images)(one)[0]["attention"].item()
    maps = [nn.functional.adaptive_avg_pool2d(look(net, [name], one.images)[1][name], 2) for name in pair]
    s, t = (nn.functional.normalize(x.square().sum(1).flatten(1)) for x in maps)
    assert found == pytest.approx((s - t).square().sum(1).mean().item(), rel=1e-12)


def test_answers_by_hand_and_zero_where_they_agree():
    target, source, one = network(0), network(1, 4, classes=3), batch()
    part = Answers(target, source, one.images, weight=2.0, temperature=2.0)
    assert part.target_layers == ["flatten"] and part.head.out_features == 3
    target.eval()
    with torch.no_grad():
        p = (source.eval()(one.images) / 2).log_softmax(1)
        features = nn.Sequential(*list(target.children())[:-1])(one.images)
        q = (part.head(features) / 2).log_softmax(1)
    terms, *_ = Transfer(target, source, [part], example=one.images)(one)
    expected = 2 * 4 * (p.exp() * (p - q)).sum(1).mean()
    assert terms["answers"].item() == pytest.approx(expected.item(), rel=1e-10)
    itself = Answers(target, target, one.images)
    itself.head.load_state_dict(target.fc.state_dict())
    assert Transfer(target, target, [itself], example=one.images)(one)[0]["answers"].item() == pytest.approx(
        0, abs=1e-14
    )


def test_starting_from_the_source_copies_all_but_the_head():
    target, source = network(0), network(1)
    head = target.fc.weight.clone()
    copied = start_from(target, source, batch().images)
    assert torch.equal(target.conv1.weight, source.conv1.weight) and torch.equal(target.fc.weight, head)
    assert "bn1.running_mean" in copied and "fc.weight" not in copied
    with pytest.raises(BadValue, match="no layer of the target has a name and shape of the source's"):
        start_from(network(0), network(1, 8), batch().images)


def test_a_network_without_a_linear_head_is_refused():
    with pytest.raises(BadValue, match="has no linear layer that gets another layer's output"):
        before_head(nn.Conv2d(1, 2, 3).double(), batch().images)


def test_methods_differ_as_the_paper_says():
    assert METHODS["scratch"].pairs == "" and not METHODS["fm"].what and METHODS["l2t_w"].what
    assert METHODS["l2t_ww"].pairs == "all" and METHODS["l2t_ww"].where and not METHODS["fm_all"].where


def test_messages_of_transfers():
    target, source, example = network(0), network(1), batch().images
    part = Matching(target, source, LAYERS, example)
    with pytest.raises(ShapeMismatch) as error:
        Transfer(target, source, [part], example=example, classes=7)
    assert str(error.value) == (
        "the target's output is (6, 5), but the data have 7 classes. Build it with num_classes=7."
    )
    with pytest.raises(BadValue, match="source is None. Give one."):
        Transfer(target, None, [part], example=example)
    with pytest.raises(BadValue, match="more than one Matching"):
        Transfer(target, source, [part, part], example=example)
    with pytest.raises(LayerNotFound, match="layer9"):
        AttentionTransfer(target, source, [("relu1", "layer9")], example)


def test_the_probe_needs_sgd():
    _, transfer = made()
    with pytest.raises(BadValue, match="the optimiser is Adam with 1 groups. Choose optimiser='sgd' and one group."):
        train(transfer, Again(batch(), 1), plan(optimiser="adam"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": -1}, "T is -1; it must be a whole number from 0 on."),
        ({"every": 0}, "every is 0; it must be a whole number from 1 on."),
        ({"warmup": 1.5}, "warmup is 1.5; it must be a whole number from 0 on."),
        ({"lr": math.nan}, "lr of the meta-learner is nan; it must be a number from 0 on."),
        ({"order": "third"}, "order is 'third'. Possible: second, first"),
    ],
)
def test_messages_of_meta(changes, message):
    with pytest.raises(BadValue) as error:
        Meta(**changes)
    assert str(error.value) == message
