"""Students trained to do what a teacher does: what moves, what the rows say, and what is refused."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from reptrans.data import Dataset, Split
from reptrans.errors import BadData, BadValue, LayerNotFound, ShapeMismatch
from reptrans.experiments.merging import (
    MergingRun,
    barriers,
    match_pairs,
    merge_pairs,
    merge_widths,
    train_networks,
)
from reptrans.merging import FAIR, SOURCE, Matching, match_models
from reptrans.models import build
from reptrans.training import Plan

SHORT = replace(FAIR, plan=replace(FAIR.plan, epochs=3, lr=1e-2), batch_size=8)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int, name: str = "cnn3_w8", classes: int = 4) -> nn.Module:
    net = build(name, num_classes=classes, in_channels=1, image_size=8, seed=seed).double()
    with torch.no_grad():
        net(normal(32, 1, 8, 8, seed=seed + 10))
    return net.eval()


IMAGES, OTHERS = normal(24, 1, 8, 8), normal(16, 1, 8, 8, seed=1)


def value(rows, quantity: str, where: str, column: str = "after") -> float:
    return rows.set_index(["quantity", "where"]).loc[(quantity, where), column]


def test_one_step_of_the_published_merging_by_hand():
    """A linear student on one image: W moves by -2 lr (W x - t) xᵀ, and the residual shrinks by 1 - 2 lr (|x|² + 1)."""
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double() for _ in range(2))
    x, lr = normal(1, 1, 2, 2), 0.01
    how = replace(SOURCE, plan=replace(SOURCE.plan, epochs=1, lr=lr))
    residual = (student(x) - teacher(x)).detach()
    moved, rows = match_models(student, teacher, x, how=how)
    wanted = student[1].weight - 2 * lr * residual.T @ x.flatten(1)
    assert torch.allclose(moved[1].weight, wanted)
    factor = 1 - 2 * lr * (float(x.square().sum()) + 1)
    assert value(rows, "rss", "fitted", "before") == pytest.approx(float(residual.square().sum()))
    assert value(rows, "rss", "fitted", "ratio") == pytest.approx(factor**2)
    step = torch.cat([(new - old).flatten() for new, old in zip(moved.parameters(), student.parameters(), strict=True)])
    assert value(rows, "distance", "parameters") == pytest.approx(float(step.detach().norm()))


def test_the_published_setting():
    plan = SOURCE.plan
    assert (plan.epochs, plan.optimiser, plan.lr, plan.momentum, plan.weight_decay) == (1000, "sgd", 1e-5, 0.0, 0.0)
    assert not SOURCE.relative and plan.schedule == "constant"


def test_matching_helps_and_leaves_what_it_should():
    student, teacher = network(0), network(1, "resnet8")
    states = [[v.clone() for v in net.state_dict().values()] for net in (student, teacher)]
    task = [(OTHERS, torch.arange(16) % 4)]
    moved, rows = match_models(
        student, teacher, IMAGES, how=SHORT, held_out=OTHERS, task=task, report=[("bn2", "layer2")]
    )
    assert value(rows, "rss", "fitted", "ratio") < 1
    for net, state in zip((student, teacher), states, strict=True):
        assert all(torch.equal(v, w) for v, w in zip(net.state_dict().values(), state, strict=True))
        assert all(p.grad is None for p in net.parameters())
    assert torch.equal(moved.bn1.running_mean, student.bn1.running_mean)
    assert not torch.equal(moved.bn1.weight, student.bn1.weight)
    assert set(zip(rows["quantity"], rows["where"], strict=True)) == {
        ("rss", "fitted"), ("rss", "held out"), ("relative rss", "fitted"), ("relative rss", "held out"),
        ("agreement", "fitted"), ("agreement", "held out"),
        ("saliency", "fitted"), ("saliency", "held out"), ("accuracy", "task"), ("cka", "bn2 - layer2"),
        ("distance", "parameters"), ("distance", "relative"),
    }  # fmt: skip
    assert not rows[["before", "after"]].isna().any().any()
    again, same = match_models(
        student, teacher, IMAGES, how=SHORT, held_out=OTHERS, task=task, report=[("bn2", "layer2")]
    )
    assert same.equals(rows)


def test_a_student_that_is_its_teacher_has_nothing_to_do():
    net = network(0)
    _, rows = match_models(net, net, IMAGES, how=SHORT, report=[("bn1", "bn1")])
    for quantity, where, wanted in [("rss", "fitted", 0), ("agreement", "fitted", 1), ("saliency", "fitted", 1),
                                    ("cka", "bn1 - bn1", 1), ("distance", "parameters", 0)]:  # fmt: skip
        assert value(rows, quantity, where) == pytest.approx(wanted, abs=1e-9), quantity


def test_a_student_in_train_mode_is_matched_in_eval_mode():
    student, teacher = network(0), network(1)
    moved, rows = match_models(student, teacher, IMAGES, how=SHORT)
    again, same = match_models(student.train(), teacher.train(), IMAGES, how=SHORT)
    assert same.equals(rows)
    assert again.training and student.training and teacher.training and not moved.training
    assert all(torch.equal(v, w) for v, w in zip(moved.state_dict().values(), again.state_dict().values(), strict=True))


def test_layers_are_matched_and_only_what_leads_to_them_moves():
    student, teacher = network(0), network(1)
    moved, rows = match_models(student, teacher, IMAGES, on=[("bn1", "bn1"), ("bn2", "bn2")], how=SHORT)
    assert value(rows, "rss", "fitted", "ratio") < 1
    assert not torch.equal(moved.conv2.weight, student.conv2.weight)
    assert torch.equal(moved.conv3.weight, student.conv3.weight)
    assert {"bn1 - bn1", "bn2 - bn2"} <= set(rows["where"])


def test_a_relative_residual_is_the_sum_over_pairs_of_shares():
    student, teacher = network(0), network(1)
    how = replace(SHORT, plan=replace(SHORT.plan, epochs=1, lr=1e-12))
    _, rows = match_models(student, teacher, IMAGES, on=[("bn1", "bn1"), ("fc", "fc")], how=how)
    total = 0
    for end in (2, None):
        s, t = (net[:end](IMAGES).flatten(1).detach() for net in (student, teacher))
        total = total + (s - t).square().sum(1) / t.square().sum(1)
    assert value(rows, "relative rss", "fitted") == pytest.approx(float(total.mean()), rel=1e-6)


def test_other_widths_need_a_connector():
    student, teacher = network(0), network(1, "cnn3_w16")
    with pytest.raises(ShapeMismatch, match=r"\(8, 8, 8\).*\(16, 8, 8\).*one shape.*connector=True"):
        match_models(student, teacher, IMAGES, on=[("bn1", "bn1")], how=SHORT)
    _, rows = match_models(student, teacher, IMAGES, on=[("bn1", "bn1")], how=replace(SHORT, connector=True))
    assert value(rows, "rss", "fitted", "ratio") < 1
    # Another grid: both are averaged down to the smaller one.
    match_models(student, teacher, IMAGES, on=[("bn1", "bn2")], how=replace(SHORT, connector=True))


def test_the_connector_starts_at_least_squares():
    """The teacher's maps are the student's times a matrix: nothing is left to do."""
    student = network(0)
    mix = nn.Conv2d(8, 5, 1).double()
    teacher = nn.Sequential(student[:2], mix, nn.Flatten(), nn.Linear(320, 4)).double()
    how = Matching(Plan(epochs=1, lr=1e-9, momentum=0.0, nesterov=False), relative=True, connector=True)
    rows = match_models(student, teacher, IMAGES, on=[("bn1", "1")], how=how)[1]
    assert value(rows, "rss", "fitted", "before") < 1e-20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": normal(4, 3, 8, 8)}, ShapeMismatch, "student Sequential does not take the fitted images"),
        ({"images": normal(4, 8, 8)}, ShapeMismatch, "must be"),
        ({"images": IMAGES[:0]}, ShapeMismatch, "at least one"),
        ({"images": IMAGES.float()}, ShapeMismatch, "does not take the fitted images"),
        ({"held_out": IMAGES * torch.nan}, BadData, "held out images hold NaN"),
        ({"teacher": network(1, classes=3)}, ShapeMismatch, r"outputs are \(4,\), the teacher's \(3,\).*on="),
        ({"on": [("bn9", "bn1")]}, LayerNotFound, "bn9"),
        ({"on": "bn1"}, BadValue, "on is 'bn1'"),
        ({"on": ["bn1", "bn2"]}, BadValue, "Possible: 'outputs', or pairs"),
    ],
)
def test_refusals(change, error, message):
    given = {"student": network(0), "teacher": network(1), "images": IMAGES, "how": SHORT} | change
    with pytest.raises(error, match=message):
        match_models(**given)


def tiny_dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    parts = [Split(torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=generator), torch.arange(40) % 4)
             for _ in range(2)]  # fmt: skip
    return Dataset("noise", *parts, tuple("abcd"), (0.5,), (0.3,))


def test_the_whole_experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    p = MergingRun(model="cnn3_w8", teacher="cnn3_w16", pairs=1, train_epochs=1, layers="bn1:bn1", images=20, points=3,
                   fair_epochs=1, train_batch_size=20, test_images=30)  # fmt: skip
    dataset = tiny_dataset()
    networks = train_networks(p, dataset)
    paths = merge_pairs(p, dataset, networks)
    assert len(paths) == 3 * 3 * 2
    assert ((paths["accuracy"] * 30 % 1).round(9) % 1 == 0).all()
    found = barriers(paths)
    assert len(found) == 6 and (found["loss_barrier"] >= 0).all()
    ends = paths[paths["share"] != 0.5].groupby("share")["cross_entropy"]
    assert (ends.max() - ends.min() < 1e-9).all()
    wide = merge_widths(p.model_copy(update={"widths": "cnn3_w8,cnn3_w2"}), dataset)
    own = wide[wide["model"] == "cnn3_w8"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own[found.columns], found)  # the same networks
    assert wide["model"].unique().tolist() == ["cnn3_w8", "cnn3_w2"]
    ends = paths[paths["share"].isin([0, 1])]["accuracy"].mean()
    assert own["accuracy_ends"].tolist() == pytest.approx([ends] * 6)
    rows, students = match_pairs(p, dataset, networks)
    assert set(students) == set(rows["how"]) == {"published", "fair"}
    files = ",".join(str(path) for path in sorted((tmp_path / "networks").glob("cnn3_w8-*")))
    loaded = train_networks(p.model_copy(update={"checkpoints": files}), dataset)
    assert torch.equal(loaded[0][1].conv1.weight, networks[0][1].conv1.weight)
    with pytest.raises(BadValue, match="checkpoints names 1 files; 1 pairs need 2"):
        train_networks(p.model_copy(update={"checkpoints": "a.pt"}), dataset)
    with pytest.raises(ValueError, match="student:teacher"):
        MergingRun(layers="bn1")
