"""FD-GAN's losses by hand, against the authors' code, and where they must be zero."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from reptrans.distillation.methods import fd_gan
from reptrans.errors import ShapeMismatch
from reptrans.tensorfiles import load_tensors

REFERENCE = Path(__file__).resolve().parent.parent / "reference" / "fd_gan.safetensors"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_weights_are_those_of_the_paper_and_the_scripts_ten_times_as_much():
    assert fd_gan.WEIGHTS["paper"] == (1, 0.1, 0.1, 10, 1)
    assert fd_gan.WEIGHTS["authors"] == (10, 1, 1, 100, 10)
    assert fd_gan.Weights._fields == ("verification", "identity", "pose", "reconstruction", "same_pose")


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
def test_gan_loss_at_logit_zero_is_ln_2_whatever_the_label(label):
    assert fd_gan.gan_loss(torch.zeros(3, 1, 2, 2), label) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("part", "label"), [("real", 1.0), ("fake", 0.0)])
def test_gan_loss_is_that_of_the_authors_code_with_its_gradient(part, label):
    stored = load_tensors(REFERENCE)[0]
    logits = stored["logits"].requires_grad_()
    loss = fd_gan.gan_loss(logits, label)
    loss.backward()
    torch.testing.assert_close(loss, stored[part], rtol=1e-4, atol=0)
    torch.testing.assert_close(logits.grad, stored[f"{part}_gradient"], rtol=1e-4, atol=1e-8)


def test_gan_loss_does_not_saturate():
    logits = torch.tensor([-200.0], requires_grad=True)
    fd_gan.gan_loss(logits, 1.0).backward()
    assert logits.grad.item() == -1


def test_discriminator_loss_is_half_of_both():
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    by_hand = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert fd_gan.discriminator_loss(real, fake) == pytest.approx(by_hand)
    assert fd_gan.discriminator_loss(real, fake, (0.0, 1.0)) == pytest.approx(by_hand + (2 + 1) / 2)


def test_smoothed_labels_stay_in_their_ranges_and_fill_them():
    draws = generator()
    real, fake = torch.tensor([fd_gan.discriminator_labels(draws, swap=0.0) for _ in range(500)]).T
    for values, low, high in ((real, 0.7, 1.0), (fake, 0.0, 0.3)):
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high
    assert torch.corrcoef(torch.stack([real, fake]))[0, 1].abs() < 0.15


def test_labels_without_smoothing_and_swapped():
    assert fd_gan.discriminator_labels(generator(), smooth=False) == (1.0, 0.0)
    assert fd_gan.discriminator_labels(generator(), smooth=False, swap=1.0) == (0.0, 1.0)
    draws = generator()
    swapped = sum(fd_gan.discriminator_labels(draws, swap=0.25)[0] < 0.5 for _ in range(2000))
    assert abs(swapped / 2000 - 0.25) < 0.04
    assert fd_gan.SWAP == 1 / 10001


def test_labels_take_as_many_draws_whatever_is_asked_for():
    first, second = generator(), generator()
    fd_gan.discriminator_labels(first, smooth=False, swap=0.0)
    fd_gan.discriminator_labels(second, swap=1.0)
    assert torch.equal(first.get_state(), second.get_state())


def test_verification_loss_is_cross_entropy_with_same_as_class_one():
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]], dtype=torch.float64)
    by_hand = -(math.log(3 / 4) + math.log(4 / 5)) / 2
    assert fd_gan.verification_loss(logits, torch.tensor([1.0, 0.0])) == pytest.approx(by_hand)


def test_reconstruction_is_the_mean_over_all_numbers():
    real = torch.zeros(1, 3, 1, 2)
    assert fd_gan.reconstruction_loss(real + 0.5, real) == 0.5
    assert fd_gan.reconstruction_loss(real, real) == 0
    fake = real.clone()
    fake[0, 0, 0, 0] = -6
    assert fd_gan.reconstruction_loss(fake, real) == 1


def test_same_pose_looks_at_pairs_of_the_same_person_only():
    first, second = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1)
    same = torch.tensor([1.0, 0.0, 0.0, 1.0])
    chosen = [0, 3]
    torch.testing.assert_close(
        fd_gan.same_pose_loss(first, second, same), F.l1_loss(first[chosen], second[chosen]), rtol=1e-12, atol=0
    )
    assert fd_gan.same_pose_loss(first, first, same) == 0
    torch.testing.assert_close(
        fd_gan.same_pose_loss(second, first, same), fd_gan.same_pose_loss(first, second, same), rtol=0, atol=0
    )


def test_same_pose_without_such_a_pair_is_zero_with_gradient_zero():
    first = normal(4, 3, 2, 2).requires_grad_()
    loss = fd_gan.same_pose_loss(first, normal(4, 3, 2, 2, seed=1), torch.zeros(4))
    loss.backward()
    assert loss == 0
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_same_pose_moves_no_pair_of_different_persons():
    first = normal(3, 3, 2, 2).requires_grad_()
    fd_gan.same_pose_loss(first, normal(3, 3, 2, 2, seed=1), torch.tensor([0.0, 1.0, 0.0])).backward()
    assert first.grad[1].abs().min() > 0
    assert not first.grad[[0, 2]].any()


@pytest.mark.parametrize("preset", list(fd_gan.WEIGHTS))
def test_terms_are_the_weighted_losses(preset):
    weights, same = fd_gan.WEIGHTS[preset], torch.tensor([1.0, 0.0])
    logits, identity, pose = normal(2, 2), normal(4, 1, seed=1), normal(4, 1, 2, 2, seed=2)
    fake, real = normal(4, 3, 4, 2, seed=3), normal(4, 3, 4, 2, seed=4)
    found = fd_gan.terms(weights, logits, identity, pose, fake, real, same)
    by_hand = {
        "verification": weights[0] * F.cross_entropy(logits, torch.tensor([1, 0])),
        "identity": weights[1] * F.softplus(-identity).mean(),
        "pose": weights[2] * F.softplus(-pose).mean(),
        "reconstruction": weights[3] * (fake - real).abs().mean(),
        "same_pose": weights[4] * (fake[0] - fake[2]).abs().mean(),
    }
    assert found.keys() == by_hand.keys()
    for name, value in by_hand.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)


def test_terms_of_weight_zero_are_left_out():
    weights = fd_gan.WEIGHTS["authors"]._replace(verification=0.0)
    found = fd_gan.terms(weights, normal(1, 2), normal(2, 1), normal(2, 1), *[normal(2, 3, 2, 2)] * 2, torch.ones(1))
    assert list(found) == ["identity", "pose", "reconstruction", "same_pose"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ShapeMismatch, match=r"fake images are \(2, 3, 4, 2\); they must be like the real ones: \(2, 3, 4"
    ):
        fd_gan.reconstruction_loss(torch.zeros(2, 3, 4, 2), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ShapeMismatch, match=r"logits are \(4, 1\).*\(4, 2\)"):
        fd_gan.verification_loss(torch.zeros(4, 1), torch.ones(4))
    with pytest.raises(ShapeMismatch, match=r"same are \(3,\)"):
        fd_gan.same_pose_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.ones(3))
    with pytest.raises(ShapeMismatch, match="first images"):
        fd_gan.same_pose_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 2), torch.ones(2))
