import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.relations import divergence, mean_divergence, neighbours, pkt
from reptrans.errors import BadValue, UnknownName
from reptrans.training import Plan

STORED = load_file(Path(__file__).parent.parent / "reference/distillation_batches.safetensors")
DRAW = torch.Generator().manual_seed(0)
T = torch.randn(7, 5, dtype=torch.float64, generator=DRAW)
S = torch.randn(7, 3, dtype=torch.float64, generator=DRAW)
ROTATION = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=DRAW)).Q


def value(teacher, student, kernel="cosine", sigma=None):
    transform = neighbours(kernel, sigma)
    return divergence(transform(teacher), transform(student))


def authors(teacher, student, kernel="cosine", sigma=None):
    transform = neighbours(kernel, sigma, itself=True)
    return mean_divergence(transform(teacher), transform(student))


@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
def test_it_is_the_definition_pair_by_pair(kernel):
    def p(x, i, j):
        def k(a, b):
            if kernel == "gaussian":
                return math.exp(-(a - b).square().sum().item() / 3.0)
            return (1 + (a @ b / a.norm() / b.norm()).item()) / 2

        return k(x[i], x[j]) / sum(k(x[m], x[j]) for m in range(7) if m != j)

    pairs = [(i, j) for j in range(7) for i in range(7) if i != j]
    expected = sum(p(T, i, j) * math.log(p(T, i, j) / p(S, i, j)) for i, j in pairs)
    assert value(T, S, kernel, 3.0).item() == pytest.approx(expected, rel=1e-12)


def test_the_stored_values():
    s, t = STORED["vs"].double(), STORED["vt"].double()
    assert value(t, s).item() == pytest.approx(0.29745699256732644, rel=1e-9)
    assert value(t, s, "gaussian", 32.0).item() == pytest.approx(0.8625244127576214, rel=1e-9)


def test_the_authors_form_is_that_of_their_code():
    s = STORED["vs"].clone().requires_grad_()
    found = authors(STORED["vt"], s)
    assert found.item() == pytest.approx(0.0037270011380314827, rel=1e-4)
    (gradient,) = torch.autograd.grad(found, s)
    torch.testing.assert_close(gradient, STORED["grad official.PKT.cosine vs"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
def test_two_images_say_nothing_without_self_pairs(kernel):
    assert value(T[:2], S[:2], kernel).item() == 0
    assert authors(T[:2], 2 * S[:2], kernel, 16.0).item() > 1e-3
    assert value(T[:1], S[:1], kernel).item() == 0


def test_three_images_by_hand():
    t = torch.tensor([[1.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    s = torch.tensor([[1.0, 0], [0, 1], [0, 1]], dtype=torch.float64)
    assert value(t, s).item() == pytest.approx(math.log(2) / 2, rel=1e-12)


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
def test_an_images_neighbours_are_a_distribution(kernel, itself):
    p = neighbours(kernel, itself=itself)(T).exp()
    assert p.shape == (7, 7 if itself else 6)
    torch.testing.assert_close(p.sum(1), torch.ones(7, dtype=torch.float64))


def test_what_does_not_count():
    turned = S @ ROTATION
    for kernel in ("cosine", "gaussian"):
        base = value(T, S, kernel).item()
        assert value(T, turned, kernel).item() == pytest.approx(base)
        assert value(T, torch.cat([T, torch.zeros(7, 4)], 1), kernel).item() == pytest.approx(0, abs=1e-14)
        assert value(T, 5 * S, kernel).item() == pytest.approx(base) and base > 0.01
    assert value(T, S * torch.arange(1, 8)[:, None]).item() == pytest.approx(value(T, S).item())
    assert value(T, S + 3, "gaussian", 2.0).item() == pytest.approx(value(T, S, "gaussian", 2.0).item())
    assert value(T, S + 3).item() != pytest.approx(value(T, S).item())


@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
def test_the_gradient_is_right_finite_and_the_students_alone(kernel):
    t = T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: value(T, s, kernel), S.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda s: authors(T, s, kernel), S.clone().requires_grad_())
    for student in (S, torch.zeros_like(S), torch.cat([S[:3], -S[:3], S[:1]])):
        s = student.clone().requires_grad_()
        (value(t, s, kernel) + authors(t, s, kernel)).backward()
        assert t.grad is None and s.grad.isfinite().all()


def test_the_variants_of_the_recipe(pair):
    (stage,) = pkt(pair, task="none").stages
    (match,) = stage.matches
    assert stage.train == "reached" and len(stage.losses) == 1 and match.weight == 1
    assert match.teacher == match.student == "fc:in"
    first, second = pkt(pair, share=0.3).stages
    assert first.share == 0.3 and second.share == 1 and not second.matches
    (joint,) = pkt(pair, task="joint", like="authors").stages
    assert len(joint.losses) == 2 and joint.matches[0].weight == 30000
    assert joint.matches[0].distance is mean_divergence
    t, s = (match.teacher_transform(x).exp() for x in (T, S))
    assert t.shape == s.shape == (7, 6) and joint.matches[0].student_transform(S).shape == (7, 7)
    assert pkt(pair, kernel="gaussian").scale_free and not pkt(pair, kernel="gaussian", sigma=2.0).scale_free


def test_the_transfer_leaves_the_classifier_as_it_was(pair):
    before = {name: value.clone() for name, value in pair.student.fc.state_dict().items()}
    plan = Plan(epochs=6, lr=0.05, precision="float64", weight_decay=0.1)
    student, rows = distill(pair.student, pair.teachers, pkt(pair, task="none"), pair.teachers[0].loader, plan)
    assert all(torch.equal(value, before[name]) for name, value in student.fc.state_dict().items())
    terms = rows[[column for column in rows if "KL" in column][0]]
    assert terms.iloc[-1] < 0.9 * terms.iloc[0]


def test_bad_options_are_refused(pair):
    for options, kind, message in (
        ({"kernel": "cosin"}, UnknownName, "Did you mean 'cosine'"),
        ({"like": "repdistiller"}, UnknownName, "Possible: paper, authors"),
        ({"task": "before"}, UnknownName, "no task 'before'.*none, after, joint"),
        ({"kernel": "gaussian", "sigma": 0.0}, BadValue, "sigma is 0.0.*above 0"),
    ):
        with pytest.raises(kind, match=message):
            pkt(pair, **options)
