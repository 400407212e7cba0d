from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reptrans.distillation.methods.relations import similarities, sp

STORED = load_file(Path(__file__).parent.parent / "reference/distillation_batches.safetensors")
DRAW = torch.Generator().manual_seed(0)
T = torch.randn(6, 5, 3, 3, dtype=torch.float64, generator=DRAW)
S = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=DRAW)


def value(pair, teacher, student):
    (match,) = sp(pair).stages[0].matches
    return match.distance(match.teacher_transform(teacher), match.student_transform(student))


def test_it_is_that_of_a_public_implementation(pair, maps):
    students = [maps[f"s{k}"].requires_grad_() for k in (1, 2, 3)]
    parts = [value(pair, maps[f"t{k}"], s) for k, s in enumerate(students, start=1)]
    assert sum(parts).item() == pytest.approx(0.0038095726631583, rel=1e-4)
    gradients = torch.autograd.grad(sum(parts), students)
    for k, gradient in enumerate(gradients, start=1):
        expected = STORED[f"grad repdistiller.Similarity(SP) s{k}"]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)


def test_two_images_by_hand(pair):
    t, s = torch.eye(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    # Rows (1, 0), (0, 1) against (1, 1) / sqrt 2 twice: each row is 2 - sqrt 2 away, over 2^2.
    assert value(pair, t, s).item() == pytest.approx(2 * (2 - 2**0.5) / 4)


def test_rows_are_unit_vectors_and_scale_and_rotation_do_not_count(pair):
    g = similarities(S)
    torch.testing.assert_close(g.norm(dim=1), torch.ones(6, dtype=torch.float64))
    rotation = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=DRAW)).Q
    torch.testing.assert_close(similarities(3 * S.flatten(1) @ rotation), g)
    assert value(pair, S, 3 * S.flatten(1) @ rotation).item() == pytest.approx(0, abs=1e-15)
    assert value(pair, T, S).item() > 1e-3
    # One image's scale changes its column in all other rows.
    assert (similarities(torch.cat([2 * S[:1], S[1:]])) - g).abs().max() > 1e-3


def test_gradients_are_finite_and_the_students_alone(pair):
    t = T.clone().requires_grad_()
    for student in (S, torch.zeros_like(S), torch.cat([S[:5], 0 * S[:1]])):
        s = student.clone().requires_grad_()
        value(pair, t, s).backward()
        assert t.grad is None and s.grad.isfinite().all()
    assert torch.autograd.gradcheck(lambda s: value(pair, T, s), S.clone().requires_grad_())


def test_it_looks_at_the_last_group_with_weight_3000(pair):
    (stage,) = sp(pair).stages
    assert [(m.teacher, m.student, m.weight) for m in stage.matches] == [("relu3", "relu3", 3000)]
    assert len(stage.losses) == 2 and stage.train == "all"
    every = sp(pair, everywhere=True, weight=2.0).stages[0].matches
    assert [(m.student, m.weight) for m in every] == [("relu1", 2), ("relu2", 2), ("relu3", 2)]
