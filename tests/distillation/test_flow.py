import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.layers import connected_gram, fsp, gram, squared_frobenius
from reptrans.errors import ShapeMismatch
from reptrans.matching import Seen
from reptrans.training import Plan

STORED = load_file(Path(__file__).parent.parent / "reference/distillation_batches.safetensors")
DRAW = torch.Generator().manual_seed(0)
A = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=DRAW)
B = torch.randn(2, 5, 4, 4, dtype=torch.float64, generator=DRAW)
PLAN = Plan(epochs=10, lr=0.05, precision="float64")


def test_an_entry_is_the_mean_product_of_two_channels():
    found = gram(A, B)
    assert found.shape == (2, 3, 5)
    assert found[1, 2, 4].item() == pytest.approx((A[1, 2] * B[1, 4]).mean().item())
    torch.testing.assert_close(
        gram(torch.full((1, 2, 3, 3), 2.0), torch.full((1, 4, 3, 3), 3.0)), torch.full((1, 2, 4), 6.0)
    )


def test_it_is_bilinear_and_blind_to_where():
    torch.testing.assert_close(gram(2 * A, -3 * B), -6 * gram(A, B))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    a, b = (x.flatten(2)[:, :, order].reshape(x.shape) for x in (A, B))
    torch.testing.assert_close(gram(a, b), gram(A, B))


def test_the_larger_map_is_max_pooled_on_either_side():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Against single ones the Gram matrix reads the pooled map: 1/4 of each entry.
    ones = torch.eye(4).reshape(1, 4, 2, 2)
    assert (4 * gram(x, ones)).flatten().tolist() == [5, 7, 13, 15]
    assert (4 * gram(ones, x)).flatten().tolist() == [5, 7, 13, 15]


def test_the_stored_values(maps):
    s2, u2 = maps["s2"].requires_grad_(), STORED["u2"]
    ours, theirs = gram(u2, s2.detach()), gram(s2, u2)
    found = squared_frobenius(ours, theirs) / ours[0].numel()  # which that code divides by
    assert found.item() == pytest.approx(0.02755483239889145, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, s2)
    # There s2 was differentiated on both sides; the two Grams are each other's transpose, so both give the same.
    torch.testing.assert_close(2 * gradient, STORED["grad repdistiller.FSP(same size) s2"], rtol=1e-4, atol=1e-8)
    paper = squared_frobenius(gram(u2.double(), s2.detach().double()), gram(s2.double(), u2.double()))
    assert paper.item() == pytest.approx(3.967895824196486, rel=1e-9)


def test_the_distance_is_summed_over_a_matrix_and_of_degree_4_in_the_scale():
    g, f = gram(A, B), gram(B[:, :3], A.repeat(1, 2, 1, 1)[:, :5])
    assert squared_frobenius(g, f).item() == pytest.approx((g - f).square().sum().item() / 2)
    assert squared_frobenius(gram(3 * A, 3 * B), 9 * f).item() == pytest.approx(81 * squared_frobenius(g, f).item())


def test_gradients_reach_the_student_alone():
    a, b = A.clone().requires_grad_(), A.clone().requires_grad_()
    squared_frobenius(gram(a, B), gram(2 * b, B)).backward()
    assert a.grad is None and b.grad.abs().max() > 0


def test_a_connector_stands_where_channels_differ_alone():
    seen = Seen((A, B), (B, B), gram(B, B), lambda: iter(()))
    module = connected_gram().make(seen).double()
    assert module(A, B).shape == (2, 5, 5) and isinstance(module.second, torch.nn.Identity)
    torch.testing.assert_close(module(A, B), gram(module.first(A), B))


def test_starts_are_paired_with_ends(twins):
    first, second = fsp(twins).stages
    assert [m.student for m in first.matches] == [("relu1", "relu1"), ("relu1", "relu2"), ("relu2", "relu3")]
    assert first.plan == {"lr": 1e-3} and first.train == "reached" and second.train == "all" and not second.matches
    assert first.share == 0.3 and second.share == 1


def test_the_first_stage_leaves_the_classifier_and_drops_its_connectors(pair):
    before, names = copy.deepcopy(pair.student.state_dict()), set(pair.student.state_dict())
    method = fsp(pair, lr=0.01)
    only_first = type(method)("fsp", method.stages[:1])
    student, rows = distill(pair.student, pair.teachers, only_first, pair.teachers[0].loader, PLAN)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("fc"), name
    terms = rows[[column for column in rows if " at relu" in column]].sum(axis=1)
    assert set(student.state_dict()) == names and terms.iloc[-1] < terms.iloc[0]
    assert rows["stage"].tolist() == [1] * 3


def test_other_channels_are_refused_without_connector(pair, twins):
    with pytest.raises(ShapeMismatch, match=r"4 and 4 channels and the student's 2 and 2.*connector=True"):
        distill(pair.student, pair.teachers, fsp(pair, connector=False), pair.teachers[0].loader, PLAN)
    _, rows = distill(twins.student, twins.teachers, fsp(twins, connector=False), twins.teachers[0].loader, PLAN)
    assert rows["stage"].tolist() == [1] * 3 + [2] * 10


def test_vectors_are_refused():
    with pytest.raises(ShapeMismatch, match=r"two maps .* \(2, 3, 4, 4\) and \(2, 3\)"):
        gram(A, A.mean((2, 3)))
