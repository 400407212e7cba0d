"""Agreement of answers: stored values, closed forms, and the edges where a quotient has no value."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import cohen_kappa_score

from reptrans import similarity as s
from reptrans.errors import BadData, BadValue, ShapeMismatch

HERE = Path(__file__).parent / "reference"
INPUTS = load_file(HERE / "similarity.safetensors")
CANONICAL = json.loads((HERE / "similarity.json").read_text("utf-8"))
A, B, LABELS = INPUTS["L1"], INPUTS["L2"], INPUTS["labels"]


def right(logits):
    return (logits.argmax(1) == LABELS).long()


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("accuracy/L1", lambda: s.agreement(A, B, LABELS)["accuracy_a"]),
        ("class_kappa/L1L1", lambda: s.cohen_kappa(A, A)),
        ("class_kappa/L1L2", lambda: s.cohen_kappa(A, B)),
        ("disagreement/L1L1", lambda: s.disagreement(A, A)),
        ("disagreement/L1L2", lambda: s.disagreement(A, B)),
        ("ensemble_accuracy/L1L2", lambda: s.ensemble_accuracy([A, B], LABELS)),
        ("error_consistency_kappa/L1L1", lambda: s.error_consistency(A, A, LABELS)),
        ("error_consistency_kappa/L1L2", lambda: s.error_consistency(A, B, LABELS)),
        ("error_inconsistency/L1L1", lambda: s.disagreement(*[right(A)] * 2)),
        ("error_inconsistency/L1L2", lambda: s.disagreement(right(A), right(B))),
        ("error_ratio_diff_over_same/L1L2", lambda: s.error_ratio(A, B, LABELS)),
        ("jsd_bits/L1L1", lambda: s.jensen_shannon(A.softmax(1), A.softmax(1)).item()),
        ("jsd_bits/L1L2", lambda: s.jensen_shannon(A.softmax(1), B.softmax(1)).item()),
    ],
)  # fmt: skip
def test_agrees_with_stored_values(key, found):
    assert found() == pytest.approx(CANONICAL[key], abs=1e-9)


def test_kappas_are_those_of_scikit_learn():
    a, b = A.argmax(1), B.argmax(1)
    assert s.cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    assert s.error_consistency(a, b, LABELS) == pytest.approx(cohen_kappa_score(a == LABELS, b == LABELS), abs=1e-12)


def answers(both, only_a, only_b, same_wrong, different_wrong):
    """Answers of a and b in three classes, the label being 0 throughout."""
    counts = torch.tensor([both, only_a, only_b, same_wrong, different_wrong])
    a, b = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2])
    return a.repeat_interleave(counts), b.repeat_interleave(counts), torch.zeros(int(counts.sum()), dtype=torch.int64)


def test_by_hand():
    a, b, labels = answers(85, 10, 5, 0, 0)
    expected = 0.95 * 0.9 + 0.05 * 0.1
    assert s.error_consistency(a, b, labels) == pytest.approx((0.85 - expected) / (1 - expected))
    assert s.disagreement(a, b) == 0.15
    assert s.error_ratio(*answers(5, 1, 1, 4, 6)) == 1.5
    assert s.churn(*answers(5, 2, 1, 4, 3)) == pytest.approx(
        {"churn": 6 / 15, "worse": 2 / 15, "better": 1 / 15, "neither": 3 / 15}
    )


@pytest.mark.parametrize("accuracies", [(0.95, 0.90), (0.3, 0.4), (0.5, 0.5), (0.2, 0.9)])
def test_kappa_reaches_both_ends_of_its_range(accuracies):
    low, high = s.error_consistency_range(*accuracies)
    a, b = (round(100 * v) for v in accuracies)
    most, least = min(a, b), max(0, a + b - 100)
    found = [s.error_consistency(*answers(x, a - x, b - x, 100 - a - b + x, 0)) for x in (least, most)]
    assert found == pytest.approx([low, high])
    if accuracies == (0.95, 0.90):
        assert (low, high) == pytest.approx((-0.0714286, 0.6428571), abs=1e-6)


def test_interval():
    interval = s.error_consistency_interval(A, B, LABELS, seed=1)
    assert interval == s.error_consistency_interval(A, B, LABELS, seed=1)
    assert interval != s.error_consistency_interval(A, B, LABELS, seed=2)
    assert interval[0] < s.error_consistency(A, B, LABELS) < interval[1]
    right = torch.stack([A.argmax(1) == LABELS, B.argmax(1) == LABELS]).long()
    g = torch.Generator().manual_seed(0)
    drawn = [right[:, torch.randint(500, (500,), generator=g)] for _ in range(1000)]
    kappas = torch.tensor([s.error_consistency(d[0], d[1], torch.ones(500)) for d in drawn], dtype=torch.float64)
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    assert interval == pytest.approx(kappas.quantile(tails).tolist(), abs=0.012)


def test_bootstrap_spread_at_95_percent():
    """Independent networks of 95 %: the deviation of kappa is near sqrt(o (1-o) / n) / (1-e), e = o = .905."""
    a, b, labels = answers(9025, 475, 475, 25, 0)
    low, high = s.error_consistency_interval(a, b, labels, level=0.682689)
    assert (high - low) / 2 == pytest.approx(0.0102, abs=0.002)


def test_quotients_without_a_value():
    right = torch.zeros(5, dtype=torch.int64)
    assert math.isnan(s.error_consistency(right, right, right))
    assert all(map(math.isnan, s.error_consistency_interval(right, right, right)))
    assert all(map(math.isnan, s.error_consistency_range(1, 1)))
    assert math.isnan(s.cohen_kappa(right, right))
    assert math.isnan(s.error_ratio(right, right, right))
    assert s.error_ratio(*answers(5, 1, 1, 0, 2)) == math.inf
    assert s.error_ratio(*answers(5, 1, 1, 2, 0)) == 0


def test_jensen_shannon_with_zeros():
    one, other = torch.eye(3)[[0, 1]], torch.eye(3)[[1, 2]]
    assert s.jensen_shannon(one, other).item() == 1
    assert s.jensen_shannon(one, one).item() == 0
    half = torch.tensor([[0.5, 0.5, 0.0]])
    # H(.75, .25) - 1/2 bit
    assert s.jensen_shannon(half, one[:1]).item() == pytest.approx(0.75 * math.log2(4 / 3) + 0.25 * 2 - 0.5)
    underflow = torch.tensor([[1000.0, 0.0], [0.0, 0.0]])
    assert math.isfinite(s.agreement(underflow, -underflow, torch.tensor([0, 1]))["jensen_shannon"])


def test_jensen_shannon_has_a_gradient():
    logits = A.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: s.jensen_shannon(v.softmax(1), B[:5].softmax(1)), logits[:5].detach().requires_grad_()
    )


def test_agreement_is_a_row_of_all():
    row = s.agreement(A, B, LABELS)
    assert row["accuracy_b"] == (B.argmax(1) == LABELS).double().mean()
    assert row["error_consistency_least"] <= row["error_consistency"] <= row["error_consistency_most"]
    assert row["error_consistency_low"] < row["error_consistency"] < row["error_consistency_high"]
    assert all(isinstance(v, float) for v in row.values())


def test_messages():
    with pytest.raises(ShapeMismatch, match=r"same examples are needed.*given \[\(500, 10\), \(400, 10\)\]"):
        s.disagreement(A, B[:400])
    with pytest.raises(BadData, match="no answers"):
        s.disagreement(A[:0], B[:0])
    with pytest.raises(BadData, match="hold NaN"):
        s.disagreement(A * math.nan, B)
    with pytest.raises(BadData, match="rows of probabilities"):
        s.jensen_shannon(A, B)
    with pytest.raises(ShapeMismatch, match=r"p and q \(n, k\); given \(500, 10\) and \(500, 9\)"):
        s.jensen_shannon(A, B[:, :9])
    with pytest.raises(BadValue, match="level lies between 0 and 1; given 95"):
        s.error_consistency_interval(A, B, LABELS, level=95)
    with pytest.raises(BadValue, match=r"fraction in \[0, 1\]; given 90"):
        s.error_consistency_range(90, 95)
    with pytest.raises(ShapeMismatch, match=r"same classes are needed, .*; given \[\(500, 10\), \(500, 9\)\]"):
        s.agreement(A, B[:, :9], LABELS)
    with pytest.raises(ShapeMismatch, match="logits .* with the same classes are needed, .*; given none"):
        s.ensemble_accuracy([], LABELS)
    with pytest.raises(
        BadData, match=r"answers \(500,\) of torch.int64 go from 1 to 10; they are whole numbers from 0 to 9"
    ):
        s.agreement(A, B, LABELS + 1)
    with pytest.raises(BadData, match="go from -1 to 8; they are whole numbers from 0 to 9"):
        s.error_consistency(A, B, LABELS - 1)
    with pytest.raises(BadData, match="they are whole numbers from 0"):
        s.disagreement(LABELS, LABELS + 0.5)
    with pytest.raises(
        BadData, match=r"the labels are \(500, 10\) of torch.float64. Give class numbers .* yes \(1\) and no \(0\)"
    ):
        s.agreement(A, B, A)


def several(n=200, k=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, k, generator=g, dtype=torch.float64)
    return a, b + a, (torch.rand(n, k, generator=g) < 0.4).to(torch.uint8)


def test_several_labels_count_each_yes_and_no():
    a, b, labels = several()
    row = s.agreement(a, b, labels)
    flat = [(v > 0).long().flatten() for v in (a, b)]
    single = s.agreement(*(torch.nn.functional.one_hot(v).double() for v in flat), labels.flatten().long())
    for name in (
        "accuracy_a",
        "accuracy_b",
        "disagreement",
        "error_consistency",
        "error_consistency_least",
        "cohen_kappa",
    ):
        assert row[name] == pytest.approx(single[name], abs=1e-12)
    assert row["ensemble_accuracy"] == (((a.sigmoid() + b.sigmoid()) > 1) == labels).double().mean()
    two = [torch.stack([v.sigmoid().flatten(), 1 - v.sigmoid().flatten()], 1) for v in (a, b)]
    assert row["jensen_shannon"] == pytest.approx(s.jensen_shannon(*two).item())
    assert s.churn(a, b, labels)["churn"] == row["disagreement"]


def test_the_interval_draws_images_with_all_their_labels():
    """Copies of one label are no further evidence: the interval is as wide as with the label alone."""
    a, b, labels = several(k=1)
    copies = [v.expand(-1, 8) for v in (a, b, labels)]
    one, eight = (s.error_consistency_interval(*v, resamples=20000) for v in ((a, b, labels), copies))
    assert eight == pytest.approx(one, abs=0.02)
    assert s.error_consistency(*copies) == pytest.approx(s.error_consistency(a, b, labels))


@pytest.mark.parametrize(
    "form", [torch.Tensor.bool, torch.Tensor.long, torch.Tensor.float, torch.Tensor.numpy, torch.Tensor.tolist]
)
def test_several_labels_in_any_form(form):
    a, b, labels = several()
    assert s.agreement(a, b, form(labels)) == s.agreement(a, b, labels)


def test_several_labels_of_other_shapes_are_refused():
    a, b, labels = several()
    with pytest.raises(
        ShapeMismatch, match=r"same examples are needed, .* given \[\(200, 4\), \(200, 4\), \(200, 3\)\]"
    ):
        s.error_consistency(a, b, labels[:, :3])
    with pytest.raises(
        BadData, match=r"answers \(200, 4\) of torch.int64 go from 0 to 2; they are whole numbers from 0 to 1"
    ):
        s.agreement(a, b, labels.long() * 2)


def test_answers_in_arrays_and_lists():
    expected = s.agreement(A, B, LABELS)
    assert s.agreement(A.numpy(), B.tolist(), LABELS.numpy()) == expected
    assert s.disagreement(LABELS.tolist(), LABELS.numpy()) == 0
