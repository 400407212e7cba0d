"""The stages: what moves, at which rate, what stays to the bit, and going on after an interruption."""

import copy
import math

import pandas as pd
import pytest
import torch
from torch import nn

from reptrans.distillation.methods import fd_gan
from reptrans.errors import BadCheckpoint, BadData, BadValue, Diverged
from reptrans.experiments.reid import ReidRun, gains, reidentify
from reptrans.reid import (
    Pairs,
    Parts,
    People,
    Rates,
    Siamese,
    Stage,
    Verification,
    encoder,
    generated,
    parts,
    stick_figures,
    train_baseline,
    train_stage,
)
from reptrans.reid import stages as internal
from reptrans.reid.stages import PUBLISHED
from reptrans.training import Plan

PEOPLE = stick_figures(6, 6, 2, height=16).train
RATES = Rates(1e-4, 2e-4, 4e-4, 1e-3, 1e-2)


def pairs(**options) -> Pairs:
    return Pairs(PEOPLE, 8, **({"negatives": 1.0, "dtype": torch.float64} | options))


def networks(seed: int = 0) -> Parts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        siamese = Siamese(encoder("convs", (16, 8), seed, channels=4), Verification(16)).double()
    return parts(siamese, pairs(), seed, noise=3, channels=2)


def stage(moves_encoder: bool = True, **options) -> Stage:
    return Stage(moves_encoder, **({"rates": RATES, "epochs": 1, "decay": 1} | options))


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(net.state_dict())


def moved(before: dict[str, torch.Tensor], net: nn.Module) -> set[str]:
    return {name for name, value in net.state_dict().items() if not torch.equal(before[name], value)}


def statistics(net: nn.Module) -> set[str]:
    return {name for name, _ in net.named_buffers()}


def test_stage_one_learns_to_tell_persons():
    net = networks().siamese
    rows = train_baseline(
        net, pairs(targets=False), Plan(epochs=25, lr=0.05, schedule="one_cycle", precision="float64")
    )
    assert rows["verification"].iloc[-1] < 0.5 < rows["verification"].iloc[0]
    assert rows["verification_accuracy"].iloc[-1] > 0.75


def test_stage_two_leaves_encoder_and_head_to_the_bit():
    nets = networks()
    before = [state(net) for net in nets]
    train_stage(nets, pairs(), stage(moves_encoder=False))
    changed = [moved(b, net) for b, net in zip(before, nets, strict=True)]
    assert changed[0] == set()
    assert changed[1] == set(before[1])
    assert changed[2] == set(before[2]) - statistics(nets.identity)
    assert changed[3] == set(before[3])


def test_stage_three_moves_everything_but_fixed_statistics():
    nets = networks()
    before = [state(net) for net in nets]
    train_stage(nets, pairs(), stage())
    for net, b, fixed in zip(nets, before, (True, False, True, False), strict=True):
        assert moved(b, net) == set(b) - (statistics(net) if fixed else set())


@pytest.mark.parametrize("moves_encoder", [True, False])
def test_every_part_moves_at_its_own_rate(moves_encoder):
    """Adam's first step has the rate's size in every number, SGD's is the rate times the gradient."""
    nets, chosen = networks(), stage(moves_encoder, swap=0.0)
    before = [copy.deepcopy(net) for net in nets]
    optimisers = internal.Optimisers(nets, chosen)
    optimisers.set_share(1.0)
    internal._set_modes(nets, chosen)
    internal._step(nets, next(iter(pairs())), chosen, optimisers, torch.Generator().manual_seed(0))

    def largest(net, old):
        return max((p - q).abs().max().item() for p, q in zip(net.parameters(), old.parameters(), strict=True))

    assert largest(nets.generator, before[1]) == pytest.approx(4e-4, rel=1e-3)
    expected = (1e-4, 2e-4) if moves_encoder else (0.0, 0.0)
    found = (largest(nets.siamese.encoder, before[0].encoder), largest(nets.siamese.head, before[0].head))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("part", ["identity", "pose"])
def test_discriminators_step_in_proportion_to_their_rates(part):
    def step(rate):
        nets = networks()
        before = [p.clone() for p in getattr(nets, part).parameters()]
        train_stage(nets, pairs(), stage(epochs=1, decay=0, rates=RATES._replace(**{part: rate})))
        return max((p - q).abs().max().item() for p, q in zip(getattr(nets, part).parameters(), before, strict=True))

    assert step(0.0) == 0
    assert step(1e-6) / step(1e-7) == pytest.approx(10, rel=0.01)


def test_published_rates_are_a_tenth_for_encoder_and_generator_in_stage_three():
    third = PUBLISHED["III"]
    assert third.encoder / third.head == pytest.approx(0.1) == third.generator / third.head
    assert (PUBLISHED["II"].generator, PUBLISHED["II"].pose) == (1e-4, 1e-3)


def test_rates_go_down_linearly_after_the_first_epochs():
    shares = [stage(epochs=2, decay=3).share(epoch) for epoch in range(5)]
    assert shares == pytest.approx([1, 1, 3 / 4, 2 / 4, 1 / 4])
    rows = train_stage(networks(), pairs(), stage(epochs=2, decay=3))
    assert rows["rate"].tolist() == pytest.approx(shares)
    optimisers = internal.Optimisers(networks(), stage())
    optimisers.set_share(0.5)
    found = [group["lr"] for each in optimisers.values() for group in each.param_groups]
    assert found == pytest.approx([0.5 * rate for rate in RATES])


def test_a_step_leaves_no_gradient_where_none_belongs():
    nets, chosen = networks(), stage(moves_encoder=False)
    optimisers = internal.Optimisers(nets, chosen)
    internal._set_modes(nets, chosen)
    internal._step(nets, next(iter(pairs())), chosen, optimisers, torch.Generator())
    assert all(p.grad is None for p in nets.siamese.parameters())
    # What the discriminators keep is the gradient of their own loss, not the generator's.
    nets, chosen = networks(), stage(rates=Rates(0, 0, 0, 0, 0), smooth=False, swap=0.0)
    optimisers, own, batch = internal.Optimisers(nets, chosen), copy.deepcopy(nets.pose), next(iter(pairs()))
    internal._step(nets, batch, chosen, optimisers, torch.Generator().manual_seed(0))
    noise = internal.noise_for(nets.generator, batch, torch.Generator().manual_seed(0))
    fakes = nets.generator(batch.maps, nets.siamese(batch.sources)[0], noise).detach()
    fd_gan.discriminator_loss(own(batch.maps, batch.targets), own(batch.maps, fakes)).backward()
    for kept, expected in zip(nets.pose.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(kept.grad, expected.grad)


def test_terms_are_those_of_the_formula():
    nets, batch, chosen = networks(), next(iter(pairs())), stage(rates=Rates(0, 0, 0, 0, 0), smooth=False, swap=0.0)
    internal._set_modes(nets, chosen)
    frozen = copy.deepcopy(nets)
    terms, figures = internal._step(
        nets, batch, chosen, internal.Optimisers(nets, chosen), torch.Generator().manual_seed(5)
    )
    draws = torch.Generator().manual_seed(5)
    codes, logits = frozen.siamese(batch.sources)
    noise = internal.noise_for(frozen.generator, batch, draws)
    fakes = frozen.generator(batch.maps, codes, noise)
    identity, pose = frozen.identity(batch.sources, fakes), frozen.pose(batch.maps, fakes)
    expected = fd_gan.terms(chosen.weights, logits, identity, pose, fakes, batch.targets, batch.same)
    assert terms.keys() == expected.keys() and len(terms) == 5
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    real = frozen.identity(batch.sources, batch.targets)
    torch.testing.assert_close(figures["discriminator_identity"], fd_gan.discriminator_loss(real, identity))
    real = frozen.pose(batch.maps, batch.targets)
    torch.testing.assert_close(figures["discriminator_pose"], fd_gan.discriminator_loss(real, pose))


def test_noise_is_shared_by_the_two_of_a_pair():
    nets, batch = networks(), next(iter(pairs()))
    noise = internal.noise_for(nets.generator, batch, torch.Generator().manual_seed(0))
    assert noise.shape == (16, 3) and torch.equal(noise[:8], noise[8:]) and noise[:8].unique().numel() == 24


def test_the_same_seed_gives_the_same_numbers_and_leaves_modes_and_random_state():
    found, before = [], torch.get_rng_state()
    for seed in (0, 0, 1):
        nets = networks()
        nets.generator.eval()
        found.append(train_stage(nets, pairs(), stage(), seed=seed))
        assert not nets.generator.training and nets.siamese.head.bn.training
    assert torch.equal(torch.get_rng_state(), before)
    assert found[0].equals(found[1]) and not found[0].equals(found[2])


@pytest.mark.parametrize("moves_encoder", [True, False])
def test_an_interrupted_stage_goes_on_to_the_same_bits(tmp_path, monkeypatch, moves_encoder):
    chosen, path, whole = stage(moves_encoder, epochs=1, decay=2), tmp_path / "s.safetensors", networks()
    rows = train_stage(whole, pairs(), chosen)
    one, train = networks(), internal._epoch

    def breaking(*given):
        if given[4] == 2:
            raise KeyboardInterrupt
        return train(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(internal, "_epoch", breaking)
        train_stage(one, pairs(), chosen, checkpoint=path)
    resumed = networks(seed=5)
    assert train_stage(resumed, pairs(), chosen, checkpoint=path).equals(rows)
    for a, b in zip(whole, resumed, strict=True):
        assert moved(state(a), b) == set()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    train_stage(networks(), pairs(), stage(), checkpoint=path)
    with pytest.raises(BadCheckpoint, match="belongs to another training: decay is 1 there and 2 here"):
        train_stage(networks(), pairs(), stage(decay=2), checkpoint=path)
    with pytest.raises(BadCheckpoint, match="seed is 0 there and 3 here"):
        train_stage(networks(), pairs(), stage(), seed=3, checkpoint=path)


def test_pairs_of_different_persons_alone_train_too():
    rows = train_stage(networks(), pairs(negatives=1e12), stage())
    assert (rows["same_pose"] == 0).all() and rows.notna().all(axis=None)


def test_without_other_weights_verification_is_trained_alone():
    nets, weights = networks(), fd_gan.Weights(1.0, 0.0, 0.0, 0.0, 0.0)
    before = [state(net) for net in nets]
    rows = train_stage(nets, pairs(targets=False), stage(weights=weights))
    assert list(rows) == ["epoch", "step", "rate", "verification"]
    assert moved(before[0], nets.siamese) == set(before[0]) - statistics(nets.siamese)
    assert [moved(b, net) for b, net in zip(before[1:], nets[1:], strict=True)] == [set(), set(), set()]


def test_generated_pictures():
    shown = generated(networks(), pairs(), count=5)
    assert list(shown) == ["source", "pose", "generated", "real"]
    assert {tuple(images.shape) for images in shown.values()} == {(5, 3, 16, 8)}
    assert all(0 <= images.min() and images.max() <= 1 for images in shown.values())
    assert shown["pose"].amax((1, 2, 3)).min() > 0.5


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    nets, path = networks(), tmp_path / "s.safetensors"
    with torch.no_grad():
        nets.generator.out.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="became nan in epoch 1 of 2, at step 1"):
        train_stage(nets, pairs(), stage(), checkpoint=path)
    assert not path.exists()


def test_stages_refuse():
    with pytest.raises(BadValue, match="epochs is 0 and decay 0"):
        stage(epochs=0, decay=0)
    with pytest.raises(BadValue, match="the rate of generator is -1"):
        stage(rates=RATES._replace(generator=-1))
    with pytest.raises(BadValue, match="the pose is nan"):
        stage(weights=fd_gan.WEIGHTS["paper"]._replace(pose=math.nan))
    with pytest.raises(BadValue, match="nothing to learn"):
        stage(moves_encoder=False, weights=fd_gan.Weights(1.0, 0.0, 0.0, 0.0, 0.0))
    with pytest.raises(BadValue, match="the pairs have no targets"):
        train_stage(networks(), pairs(targets=False), stage())


SMALL = ReidRun(
    identities=12, poses=6, held_out=6, height=16, channels=2, generator_channels=2, seeds=2, epochs_1=1, epochs_2=2,
    epochs_3=2, batch_size=8, noise=2, device="cpu",
)  # fmt: skip


def test_the_whole_experiment_gives_rows_and_pictures_and_goes_on(tmp_path):
    people = SMALL.load()
    rows, pictures = reidentify(SMALL, people, tmp_path)
    assert rows["condition"].tolist() == ["untrained", "stage I", "control", "stage III"] * 2
    assert rows["seed"].tolist() == [0] * 4 + [1] * 4
    assert rows[["rank1", "mAP"]].stack().between(0, 1).all() and rows["pose_r2"].notna().all()
    assert list(pictures) == ["stage II", "stage III"]
    again, same = reidentify(SMALL, people, tmp_path)
    assert again.equals(rows)
    assert torch.equal(same["stage III"]["generated"], pictures["stage III"]["generated"])


def test_the_experiment_refuses_images_without_landmarks_before_any_training(tmp_path):
    found = SMALL.load()
    blind = People(found.query.images, found.query.identities, found.query.cameras)
    with pytest.raises(BadData, match="no landmarks"):
        reidentify(SMALL, type(found)("blind", found.train, blind, found.gallery), tmp_path)
    assert not list(tmp_path.iterdir())


def scored(legible):
    rows = []
    for seed, noise in enumerate((0.0, 0.01, -0.01)):
        for condition, mean, pose in (("control", 0.5, legible), ("stage III", 0.6, legible - 0.1)):
            more = noise if condition == "stage III" else 0
            rows.append((seed, condition, mean + more, mean - more, pose + more))
    return pd.DataFrame(rows, columns=["seed", "condition", "mAP", "rank1", "pose_r2"])


def test_what_stage_three_gains_is_judged_by_rule():
    table, note = gains(scored(0.5))
    assert note == "" and table["score"].to_list() == ["mAP", "rank1", "less_pose"]
    assert table["gain"].to_list() == pytest.approx([0.1] * 3)
    assert table["verdict"].to_list() == ["held"] * 3


def test_a_pose_that_cannot_be_read_gets_no_verdict():
    table, note = gains(scored(0.05))
    assert table["verdict"].to_list() == ["held", "held", ""]
    assert note == "The control's code tells 0.05 of the pose, less than 0.3: too little to judge by."
