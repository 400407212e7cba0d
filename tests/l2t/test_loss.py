"""Pairs and weights: the values of the authors' code, closed forms, invariances and messages."""

import pytest
import torch
from l2t.networks import REFERENCE, Constants, batch, fill_matching, network, normal
from torch import nn

from reptrans.errors import BadValue, LayerNotFound, ShapeMismatch, UnknownName
from reptrans.l2t import Matching, Pairs, Together, Weights, dead
from reptrans.l2t.matching import Looked, look, means, resized
from reptrans.tensorfiles import load_tensors

LAYERS = [(f"relu{a}", f"relu{b}") for a in (1, 2, 3) for b in (1, 2, 3)]


@pytest.fixture(scope="module")
def reference() -> dict:
    return load_tensors(REFERENCE / "l2t_loss.safetensors")[0]


def matched(matching: Matching, source: dict, target: dict) -> tuple[torch.Tensor, dict]:
    terms, figures, _ = matching(Looked(torch.zeros(2, 10), target, None, source))
    return terms["matching"], figures


def published(reference: dict, **weights) -> tuple[Matching, dict, dict]:
    """The reference's six pairs with its parameters; source and target features, these with gradients."""
    source = {f"s{k}": reference["source_feature"][k].double() for k in reference["source_feature"]}
    target = {f"t{k}": x.double().requires_grad_() for k, x in reference["target_feature"].items()}
    pairs = [(f"s{s}", f"t{t}") for s, t in reference["pairs"]]
    made = Matching.__new__(Matching)
    nn.Module.__init__(made)
    made.pairs = Pairs(pairs, source, target, resize="bilinear")
    made.weights = Weights(made.pairs, **weights)
    fill_matching(made, reference["f_params"], reference["g_params"], reference["regressor"])
    return made, source, target


@pytest.mark.parametrize(
    ("weights", "key"),
    [
        ({}, "matching_loss"),
        ({"where": False}, "matching_loss_f_only"),
        ({"what": False, "where": False}, "matching_loss_unweighted"),
    ],
)
def test_loss_is_that_of_the_authors(reference, weights, key):
    matching, source, target = published(reference, **weights)
    assert matched(matching, source, target)[0].item() == pytest.approx(reference[key].item(), rel=1e-12)


def test_where_alone_is_averaged_or_summed_over_channels(reference):
    matching, source, target = published(reference, what=False)
    differences = matching.pairs.split(matching.pairs(matching.pairs.prepared(source), target))
    where = matching.weights.pair_weights(means(source))
    mean = sum((where[:, k] * d.mean(1)).mean() for k, d in enumerate(differences.values())) / 2
    total = sum((where[:, k] * d.sum(1)).mean() for k, d in enumerate(differences.values())) / 2
    assert matched(matching, source, target)[0].item() == pytest.approx(mean.item(), rel=1e-12)
    summed, _, _ = published(reference, what=False, summed=True)
    assert matched(summed, source, target)[0].item() == pytest.approx(total.item(), rel=1e-12)


def test_every_pair_and_every_weight_is_that_of_the_authors(reference):
    matching, source, target = published(reference)
    what = matching.weights.channel_weights(means(source))
    where = matching.weights.pair_weights(means(source))
    for k in range(6):
        torch.testing.assert_close(what[k], reference["channel_weight"][k], rtol=1e-12, atol=0)
        torch.testing.assert_close(where[:, [k]], reference["pair_weight"][k], rtol=1e-12, atol=0)
    prepared = matching.pairs.prepared(source)
    weighted = {t: w * matching.pairs(prepared, target)[t] for t, w in matching.weights(means(source))[0].items()}
    found = torch.stack([d.sum() for d in matching.pairs.split(weighted).values()])
    torch.testing.assert_close(found, reference["matching_loss_per_pair"], rtol=1e-12, atol=0)


def test_gradients_are_those_of_the_authors(reference):
    matching, source, target = published(reference)
    differences = matching.pairs(matching.pairs.prepared(source), target)
    coefficients, _ = matching.weights(means(source))
    sum((coefficients[t] * d).sum() for t, d in differences.items()).backward()
    for k, f in enumerate(matching.weights.f):
        for part in ("weight", "bias"):
            expected = reference["matching_grad_f"][f"{k}.{part}"]
            torch.testing.assert_close(getattr(f, part).grad, expected, rtol=1e-9, atol=1e-12)
    for k, norm in reference["matching_grad_target_feature_norm"].items():
        assert target[f"t{k}"].grad.norm().item() == pytest.approx(norm, rel=1e-9)
    for part in ("weight", "bias"):
        grads = {t: getattr(r, part).grad for t, r in matching.pairs.regressors.items()}
        parts = {
            pair: grads[pair[1]].split([matching.pairs.channels[s] for s in names])[names.index(pair[0])]
            for t, names in matching.pairs.of_target.items() for pair in [(s, t) for s in names]
        }  # fmt: skip
        for k, pair in enumerate(matching.pairs.pairs):
            expected = reference["matching_grad_regressor_norm"][f"{k}.{part}"]
            assert parts[pair].norm().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("side", [4, 8])
def test_differences_by_hand(side):
    """By residuals (few pixels) and by second moments (many): the same definition."""
    source, target = normal(3, 2, side, side), normal(3, 4, side, side, seed=1)
    pairs = Pairs([("a", "b")], {"a": source}, {"b": target})
    weight, bias = pairs.regressors["b"].weight[:, :, 0, 0], pairs.regressors["b"].bias
    expected = (source - torch.einsum("ct,nthw->nchw", weight, target) - bias[:, None, None]).square().mean((2, 3))
    found = pairs(pairs.prepared({"a": source}), {"b": target})["b"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_zero_where_the_regressor_reproduces_the_source():
    x = normal(2, 3, 4, 4)
    pairs = Pairs([("a", "b")], {"a": x}, {"b": x})
    with torch.no_grad():
        pairs.regressors["b"].weight.copy_(torch.eye(3)[:, :, None, None])
        pairs.regressors["b"].bias.zero_()
    assert pairs(pairs.prepared({"a": x}), {"b": x})["b"].abs().max() < 1e-13


def test_resizing():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resized(x, (2, 2), "area").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resized(x, (1, 1), "area").item() == 7.5
    assert resized(normal(1, 1, 8, 8), (2, 2), "area").shape == (1, 1, 2, 2)
    sampled = resized(torch.arange(64.0).reshape(1, 1, 8, 8), (2, 2), "bilinear")
    assert sampled.flatten().tolist() == [(9 + 10 + 17 + 18) / 4, (13 + 14 + 21 + 22) / 4, 45.5, 49.5]
    assert resized(x, (4, 4), "area") is x
    grown = resized(torch.tensor([[[[0.0, 1.0]]]]), (1, 4), "area")
    assert grown.flatten().tolist() == [0, 0.25, 0.75, 1]


def test_uniform_weights_are_feature_matching():
    """beta * sum over pairs of the mean squared difference; f and g at their start give the same."""
    target, source, one = network(0), network(1, 8), batch()
    found = []
    for chosen in ({"what": False, "where": False}, {"where": False}, {}, {"what": False}):
        matching = Matching(target, source, LAYERS, one.images, **chosen)
        found.append(both_sides(matching, target, source, one).item())
    matching = Matching(target, source, LAYERS, one.images)
    _, s, t = sides(matching, target, source, one)
    by_pair = matching.pairs.split(matching.pairs(matching.pairs.prepared(s), t))
    expected = 0.5 * sum(d.mean() for d in by_pair.values()).item()
    assert found == pytest.approx([expected] * 4, rel=1e-12)


def sides(matching, target, source, one):
    logits, t = look(target, matching.target_layers, one.images, True)
    with torch.no_grad():
        s = look(source.eval(), matching.source_layers, one.images, True)[1]
    return logits, s, t


def both_sides(matching, target, source, one) -> torch.Tensor:
    _, s, t = sides(matching, target, source, one)
    return matched(matching, s, t)[0]


def test_the_order_of_pairs_changes_nothing():
    """The same parameters for every pair, whatever the order: the same loss, and the same lambda by name."""
    target, source, one = network(0), network(1, 8), batch()
    first, second = (Matching(target, source, pairs, one.images, initial="random") for pairs in (LAYERS, LAYERS[::-1]))
    for k, pair in enumerate(second.pairs.pairs):
        j = first.pairs.pairs.index(pair)
        second.weights.f[k].load_state_dict(first.weights.f[j].state_dict())
        second.weights.g[k].load_state_dict(first.weights.g[j].state_dict())
    rows = {(s, t): (w, b) for t in first.pairs.of_target for s, w, b in of_sources(first.pairs, t)}
    with torch.no_grad():
        for t, names in second.pairs.of_target.items():
            second.pairs.regressors[t].weight.copy_(torch.cat([rows[s, t][0] for s in names]))
            second.pairs.regressors[t].bias.copy_(torch.cat([rows[s, t][1] for s in names]))
    one_way, other_way = (matched(m, *sides(m, target, source, one)[1:]) for m in (first, second))
    assert one_way[0].item() == pytest.approx(other_way[0].item(), rel=1e-12)
    assert {k: v.item() for k, v in one_way[1].items()} == pytest.approx({k: v.item() for k, v in other_way[1].items()})


def of_sources(pairs: Pairs, t: str):
    names, r = pairs.of_target[t], pairs.regressors[t]
    widths = [pairs.channels[s] for s in names]
    return zip(names, r.weight.split(widths), r.bias.split(widths), strict=True)


def test_several_sources_add_up():
    target, one = network(0), batch()
    sources = Together(first=network(1), second=network(2, 8)).eval()
    pairs = [("first.relu2", "relu2"), ("second.relu3", "relu2"), ("second.relu1", "relu1")]
    matching = Matching(target, sources, pairs, one.images)
    whole, figures = matched(matching, *sides(matching, target, sources, one)[1:])
    parts = []
    for pair in pairs:
        alone = Matching(target, sources, [pair], one.images)
        ((_, weight, bias),) = [r for r in of_sources(matching.pairs, pair[1]) if r[0] == pair[0]]
        with torch.no_grad():
            alone.pairs.regressors[pair[1]].weight.copy_(weight)
            alone.pairs.regressors[pair[1]].bias.copy_(bias)
        parts.append(both_sides(alone, target, sources, one).item())
    assert whole.item() == pytest.approx(sum(parts), rel=1e-12)
    assert list(figures) == ["first.relu2 > relu2", "second.relu3 > relu2", "second.relu1 > relu1"]


def test_a_batch_of_one():
    target, source, one = network(0), network(1), batch(1)
    assert both_sides(Matching(target, source, LAYERS, one.images), target, source, one).isfinite()


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("relu6", [6.0, 0.0]), ("relu", [9.0, 0.0]), ("relu-avg", [1 + 8 / 4, 0.0]), ("const", [0.6931471805599453] * 2)],
)
def test_activations_of_g(activation, expected):
    source = normal(2, 4, 2, 2)
    pairs = Pairs([("a", "b")], {"a": source}, {"b": source})
    weights = Weights(pairs, activation=activation, start=1.0)
    if activation != "const":
        with torch.no_grad():
            weights.g[0].weight.fill_(1.0)
    z = torch.tensor([[2.0] * 4, [-2.0] * 4]).double()
    assert weights.pair_weights({"a": z}).flatten().tolist() == pytest.approx(expected)


def test_starts():
    pairs = Pairs([("a", "b")], {"a": normal(2, 4, 2, 2)}, {"b": normal(2, 4, 2, 2)})
    plain, random = Weights(pairs, start=0.7), Weights(pairs, start=0.7, initial="random")
    assert not plain.g[0].weight.any() and random.g[0].weight.all()
    assert plain.g[0].bias.item() == random.g[0].bias.item() == 0.7
    assert not random.f[0].weight.any() and not random.f[0].bias.any()
    same = Weights(pairs, start=0.7, initial="random")
    assert torch.equal(random.g[0].weight, same.g[0].weight)
    assert not torch.equal(random.g[0].weight, Weights(pairs, initial="random", seed=1).g[0].weight)


def test_dead_pairs_are_named_and_warned_of():
    where = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    assert dead(where, [("a", "x"), ("a", "y"), ("b", "x")]) == [("a", "x")]
    target, source, one = network(0), network(1), batch()
    with pytest.warns(UserWarning, match="2 of 2 pairs are dead from the start: relu1 > relu1, relu1 > relu2$"):
        Matching(target, source, LAYERS[:2], one.images, start=-1.0)


def test_like_authors():
    target, source, one = network(0), network(1), batch()
    theirs = Matching(target, source, LAYERS[:1], one.images, like="authors", what=False)
    assert theirs.pairs.resize == "bilinear" and theirs.weights.g[0].weight.any() and theirs.weights.share == [1.0]
    ours = Matching(target, source, LAYERS[:1], one.images, what=False)
    assert ours.pairs.resize == "area" and not ours.weights.g[0].weight.any() and ours.weights.share == [0.25]
    mixed = Matching(target, source, LAYERS[:1], one.images, like="authors", resize="area", initial="zero")
    assert mixed.pairs.resize == "area" and not mixed.weights.g[0].weight.any()


MAPS, VECTOR, TOKENS = (torch.zeros(shape) for shape in ((2, 3, 4, 4), (2, 3), (2, 5, 3)))


@pytest.mark.parametrize(("source", "target"), [(VECTOR, MAPS), (MAPS, VECTOR), (TOKENS, MAPS), (TOKENS, TOKENS)])
def test_what_cannot_be_resized_is_refused(source, target):
    with pytest.raises(ShapeMismatch) as error:
        Pairs([("a", "b")], {"a": source}, {"b": target})
    assert str(error.value) == (
        f"source layer 'a' gives {tuple(source.shape)}, target layer 'b' gives {tuple(target.shape)}: these cannot be "
        "resized onto each other. A pair needs two layers of maps (n, c, h, w), or two of vectors (n, c)."
    )


def test_vectors_match_vectors():
    x, y = normal(4, 3), normal(4, 2, seed=1)
    pairs = Pairs([("a", "b")], {"a": x}, {"b": y})
    expected = (x - pairs.regressors["b"](y[:, :, None, None])[:, :, 0, 0]).square()
    torch.testing.assert_close(pairs(pairs.prepared({"a": x}), {"b": y})["b"], expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pairs": []}, BadValue, "pairs is empty; name one at least: (source layer, target layer)."),
        ({"pairs": LAYERS[:1] * 2}, BadValue, "the pair ('relu1', 'relu1') stands twice in pairs. Name it once."),
        ({"resize": "cubic"}, UnknownName, "there is no resizing 'cubic'. Possible: area, bilinear"),
        ({"like": "paper"}, UnknownName, "there is no preset like='paper'. Possible: authors"),
        ({"activation": "elu"}, UnknownName,
         "there is no activation 'elu'. Did you mean 'relu' or 'relu-avg' or 'relu6'? Possible: relu6, relu, "
         "relu-avg, const"),
        ({"initial": "ones"}, UnknownName, "there is no initial 'ones'. Possible: zero, random"),
        ({"beta": -1.0}, BadValue, "beta is -1.0; it must be a number from 0 on."),
    ],
)  # fmt: skip
def test_messages(changes, error, message):
    arguments = {"pairs": LAYERS[:1]} | changes
    with pytest.raises(error) as raised:
        Matching(network(0), network(1), arguments.pop("pairs"), batch().images, **arguments)
    assert str(raised.value) == message


def test_unknown_layers_are_named():
    with pytest.raises(LayerNotFound, match="relu9"):
        Matching(network(0), network(1), [("relu9", "relu1")], batch().images)


def test_constants_give_what_they_hold():
    maps = [normal(3, 2, 4, 4), normal(3, 1, 2, 2)]
    assert torch.equal(Constants(maps)(torch.zeros(2, 1, 8, 8)), maps[1][:2].flatten(1))
