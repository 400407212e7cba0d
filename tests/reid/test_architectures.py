"""The networks: shapes, what depends on what, and where each begins."""

import pytest
import torch
from torch import nn

from reptrans.errors import BadValue, ShapeMismatch, UnknownName
from reptrans.reid import Generator, IdentityDiscriminator, PatchDiscriminator, Siamese, Verification, encoder
from reptrans.training import evaluating


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("model", "width"), [("convs", 64), ("convs_flat", 384), ("cnn3_w4", 16), ("resnet20_w1", 64), ("lenet", 84)]
)
def test_encoders_give_codes_of_their_width(model, width):
    net = encoder(model, (32, 16) if model != "lenet" else (32, 32)).eval()
    found = net(normal(2, 3, *((32, 16) if model != "lenet" else (32, 32))))
    assert net.width == width and found.shape == (2, width)


def test_encoders_follow_from_their_seed_and_leave_the_random_state():
    before = torch.get_rng_state()
    first, again, other = (encoder("convs", (16, 8), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [next(net.parameters()) for net in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert encoder("convs", (16, 8), channels=4).width == 16
    flat = encoder("convs_flat", (20, 9), channels=4)  # sides that are no multiples of 8
    assert flat(normal(2, 3, 20, 9)).shape == (2, flat.width) == (2, 12 * 3 * 2)


def test_encoders_without_a_last_linear_layer_are_refused():
    with pytest.raises(BadValue, match="torchvision/squeezenet1_1 does not end in a linear layer"):
        encoder("torchvision/squeezenet1_1", (64, 32))
    with pytest.raises(UnknownName, match='no network .conv.*As an encoder also "convs" and "convs_flat"'):
        encoder("conv", (64, 32))


@pytest.mark.parametrize("training", [True, False])
def test_verification_is_symmetric(training):
    head = Verification(6).train(training)
    a, b = normal(5, 6), normal(5, 6, seed=1)
    assert torch.equal(head(a, b), head(b, a))
    assert not torch.equal(head(a, b), head(a, a))


def test_verification_is_the_formula():
    head = Verification(3).eval()
    head.bn.running_mean.fill_(0.5)
    a, b = normal(2, 3), normal(2, 3, seed=1)
    by_hand = (((a - b) ** 2 - 0.5) / (1 + head.bn.eps) ** 0.5) @ head.fc.weight.T + head.fc.bias
    torch.testing.assert_close(head(a, b), by_hand)


def test_the_siamese_network_pairs_its_halves():
    net = Siamese(encoder("convs", (16, 8)), Verification(64)).eval()
    images = normal(6, 3, 16, 8)
    codes, logits = net(images)
    torch.testing.assert_close(codes, net.encoder(images))
    torch.testing.assert_close(logits[1], net.head(codes[1:2], codes[4:5])[0])


@pytest.mark.parametrize(("size", "widths"), [((32, 16), (4, 6)), ((32, 16), (2, 4, 8)), ((64, 32), (4, 4, 4, 4))])
def test_the_generator_makes_images_between_minus_one_and_one(size, widths):
    net = Generator(6, 10, size, widths=widths, noise=5)
    found = net(normal(2, 6, *size), normal(2, 10), normal(2, 5))
    assert found.shape == (2, 3, *size)
    assert found.abs().max() <= 1


def test_the_generator_uses_pose_code_and_noise():
    net = Generator(2, 3, (16, 8), widths=(4, 4), noise=2).eval()
    given = normal(2, 2, 16, 8), normal(2, 3), normal(2, 2)
    plain = net(*given)
    for number in range(3):
        changed = [x.flip(0) if i == number else x for i, x in enumerate(given)]
        assert not torch.allclose(net(*changed), plain)


def test_the_generator_refuses_sizes_that_do_not_halve():
    with pytest.raises(ShapeMismatch, match="images are 20 x 10; with 3 widths the generator needs multiples of 8"):
        Generator(6, 10, (20, 10))


def test_the_pose_discriminator_sees_pose_and_image_by_patches():
    net = PatchDiscriminator(6).eval()
    maps, images = normal(2, 6, 32, 16), normal(2, 3, 32, 16, seed=1)
    plain = net(maps, images)
    assert plain.shape == (2, 1, 8, 4)
    assert not torch.allclose(net(maps.flip(0), images), plain)
    assert not torch.allclose(net(maps, images.flip(0)), plain)
    images = images.clone()
    images[:, :, :4] += 1
    assert torch.equal(net(maps, images)[:, :, -2:], plain[:, :, -2:])


def test_the_identity_discriminator_begins_as_the_baselines_logit_for_same():
    baseline = Siamese(encoder("convs", (16, 8)), Verification(64))
    baseline(normal(8, 3, 16, 8))  # so that batch norms have seen something
    net, (a, b) = IdentityDiscriminator(baseline), normal(2, 4, 3, 16, 8, seed=1)
    with evaluating(net, baseline):
        torch.testing.assert_close(net(a, b), baseline(torch.cat([a, b]))[1][:, 1:])


def test_permuting_identities_changes_the_identity_discriminators_score():
    net = IdentityDiscriminator(Siamese(encoder("convs", (16, 8)), Verification(64))).eval()
    a, b = normal(2, 4, 3, 16, 8, seed=1)
    assert not torch.allclose(net(a, b.roll(1, 0)), net(a, b))
    torch.testing.assert_close(net(a.roll(1, 0), b.roll(1, 0)), net(a, b).roll(1, 0))


def test_the_identity_discriminator_shares_nothing_with_the_baseline():
    baseline = Siamese(encoder("convs", (16, 8)), Verification(64))
    before = [p.clone() for p in baseline.parameters()]
    with torch.no_grad():
        for p in IdentityDiscriminator(baseline).parameters():
            p.add_(1)
    assert all(torch.equal(p, q) for p, q in zip(baseline.parameters(), before, strict=True))
    assert isinstance(baseline.head.fc, nn.Linear) and baseline.head.fc.out_features == 2
