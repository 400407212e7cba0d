import copy
from dataclasses import replace

import pytest
import torch

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.layers import (
    class_gram,
    fixed_projection,
    layer_scores,
    lsl,
    select_layers,
    selected_pairs,
    trained_projection,
)
from reptrans.errors import BadValue, ShapeMismatch
from reptrans.matching import Seen, norm_l2, tapped
from reptrans.training import Plan

DRAW = torch.Generator().manual_seed(0)
LABELS = torch.arange(12) % 3


def layer(width):
    return torch.randn(12, width, dtype=torch.float64, generator=DRAW).relu() + 0.01


FEATURES = {"a": layer(4), "b": layer(7), "c": layer(3), "d": layer(5)}


def test_orthogonal_classes_score_0_and_equal_ones_1():
    orthogonal = 3.0 * torch.eye(3, dtype=torch.float64)[LABELS]
    equal = torch.ones(12, 2, dtype=torch.float64)
    opposite = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)[LABELS[LABELS < 2]]
    rows = layer_scores({"orthogonal": orthogonal, "equal": equal}, LABELS).set_index("layer")
    assert rows["between_classes"].tolist() == pytest.approx([0, 1], abs=1e-12)
    assert rows["between_layers"].iloc[0] == pytest.approx(3 / (3**0.5 * 3))  # identity and all ones, as vectors
    alone = layer_scores({"opposite": opposite}, LABELS[LABELS < 2])
    assert alone["between_classes"].item() == pytest.approx(1) and alone["between_layers"].item() == 0


def test_the_scores_are_the_definition():
    rows = layer_scores(FEATURES, LABELS)
    grams = []
    for x in FEATURES.values():
        means = torch.stack([(x / x.norm(dim=1, keepdim=True))[LABELS == c].mean(0) for c in range(3)])
        means = means / means.norm(dim=1, keepdim=True)
        grams.append(means @ means.T)
    for k, g in enumerate(grams):
        a = (g.abs().sum() - 3) / 6
        b = sum((g * h).sum() / g.norm() / h.norm() for j, h in enumerate(grams) if j != k) / 3
        assert rows["between_classes"][k] == pytest.approx(a.item())
        assert rows["between_layers"][k] == pytest.approx(b.item())
        assert rows["score"][k] == pytest.approx((a + b).item())


def test_maps_are_averaged_and_each_image_counts_alike():
    maps = torch.rand(12, 4, 3, 3, dtype=torch.float64, generator=DRAW)
    torch.testing.assert_close(class_gram(maps, LABELS), class_gram(maps.mean((2, 3)), LABELS))
    scaled = FEATURES["a"] * torch.arange(1, 13)[:, None]
    torch.testing.assert_close(class_gram(scaled, LABELS), class_gram(FEATURES["a"], LABELS))


def test_names_of_classes_and_rotations_do_not_count():
    base = layer_scores(FEATURES, LABELS)["score"].tolist()
    renamed = torch.tensor([7, 2, 5])[LABELS]
    assert layer_scores(FEATURES, renamed)["score"].tolist() == pytest.approx(base)
    turned = {
        name: x @ torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=DRAW).double()).Q
        for name, x in FEATURES.items()
    }
    assert layer_scores(turned, LABELS)["score"].tolist() == pytest.approx(base)


def test_a_layer_that_is_there_twice_is_never_more_diverse():
    before = layer_scores(FEATURES, LABELS).set_index("layer")["between_layers"]
    after = layer_scores(FEATURES | {"again": FEATURES["b"]}, LABELS).set_index("layer")["between_layers"]
    assert after["b"] > before["b"] and after["again"] == pytest.approx(after["b"])


def test_the_smallest_scores_are_taken_in_depths_order():
    scores = layer_scores(FEATURES, LABELS).set_index("layer")["score"]
    for n in range(1, 5):
        chosen = select_layers(FEATURES, LABELS, n)
        assert chosen == [name for name in FEATURES if name in set(scores.nsmallest(n).index)]
    same = {"first": FEATURES["a"], "second": FEATURES["a"].clone(), "third": FEATURES["a"] * 2}
    assert select_layers(same, LABELS, 1) == ["first"]


def seen(student, teacher):
    return Seen((student,), (teacher,), None, lambda: iter(()))


def test_the_teachers_projection_is_drawn_with_its_seed_and_nothing_trains_it():
    maps, vectors = torch.randn(3, 6, 4, 4), torch.randn(3, 6)
    first, again, other = (fixed_projection(8, seed).make(seen(vectors, maps)) for seed in (1, 1, 2))
    assert (
        first(maps).shape == (3, 8)
        and torch.equal(first(maps), again(maps))
        and not torch.equal(first(maps), other(maps))
    )
    torch.testing.assert_close(first(maps), maps.mean((2, 3)) @ first[-1].weight.T)
    assert not any(p.requires_grad for p in first.parameters()) and first[-1].bias is None
    wide = fixed_projection(64, 0).make(seen(vectors, torch.randn(2, 400)))
    assert wide[-1].weight.std().item() == pytest.approx(1 / 20, rel=0.02)
    own = trained_projection(8).make(seen(maps, vectors))
    assert own(maps).shape == (3, 8) and all(p.requires_grad for p in own.parameters())


def test_the_distance_has_gradient_1_in_every_image():
    t, s = torch.randn(2, 5, 8, dtype=torch.float64, generator=DRAW).unbind(0)
    (gradient,) = torch.autograd.grad(5 * norm_l2(t, s.requires_grad_()), s)
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_pairs_are_each_networks_own_choice_and_looking_leaves_no_trace(pair):
    before = copy.deepcopy(pair.student.state_dict())
    draws = torch.random.get_rng_state()
    (one,) = selected_pairs(pair, 1)
    assert selected_pairs(pair, 3) == [("relu1", "relu1"), ("relu2", "relu2"), ("relu3", "relu3")]
    images, labels, _ = zip(*pair.teachers[0].loader.plain(), strict=True)
    for net, name in zip((pair.teacher, pair.student.eval()), one, strict=True):
        maps = tapped(net, torch.cat(images), None, ["relu1", "relu2", "relu3"], keep_graph=False)
        assert select_layers(maps, torch.cat(labels), 1) == [name]
    assert torch.equal(draws, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in pair.student.state_dict().items())


def test_a_short_training_brings_the_student_nearer_without_moving_the_projection(pair):
    method = lsl(pair, pairs=2, dimension=6, weight=5.0)
    assert [m.weight for m in method.stages[0].matches] == [5.0, 5.0] and len(method.stages[0].losses) == 3
    plan = Plan(epochs=6, lr=0.01, precision="float64")
    student, rows = distill(pair.student, pair.teachers, method, pair.teachers[0].loader, plan)
    terms = rows[[column for column in rows if column.startswith("L2")]].sum(axis=1)
    assert terms.iloc[-1] < terms.iloc[0]


def test_bad_choices_are_refused_before_a_pass(pair):
    with pytest.raises(BadValue, match="4 layers .* the teacher has 3 rectified and the student 3"):
        lsl(pair, pairs=4)
    few = replace(pair, of_student=replace(pair.of_student, layers=("relu2",)))
    with pytest.raises(BadValue, match="the student 1 rectified"):
        lsl(few)
    with pytest.raises(BadValue, match="dimension is 0"):
        lsl(pair, dimension=0)
    with pytest.raises(BadValue, match="5 layers are to be chosen of 4"):
        select_layers(FEATURES, LABELS, 5)
    with pytest.raises(BadValue, match="all images are of one class"):
        select_layers(FEATURES, torch.zeros(12, dtype=torch.int64), 1)
    with pytest.raises(ShapeMismatch, match=r"features are \(12, 4\) and labels \(11,\)"):
        select_layers(FEATURES, LABELS[:11], 1)
