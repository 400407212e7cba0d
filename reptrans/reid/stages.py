"""The three stages of FD-GAN: a Siamese baseline; generator and discriminators around it; everything together."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from reptrans.data.loader import mixed
from reptrans.distillation.methods import fd_gan
from reptrans.errors import BadValue
from reptrans.layers.network import keeping_modes
from reptrans.progress import progress
from reptrans.randomness import drawing, generator_of
from reptrans.reid.architectures import Generator, IdentityDiscriminator, PatchDiscriminator, Siamese
from reptrans.reid.people import PairBatch, Pairs
from reptrans.training import Plan, accuracy, evaluating, fit
from reptrans.training.loop import Sums, total_of
from reptrans.training.resume import Keeper
from reptrans.training.schedule import round_weights


class Rates(NamedTuple):
    """The highest learning rate of each part: Adam's of the first three, SGD's of the two discriminators."""

    encoder: float
    head: float
    generator: float
    identity: float
    pose: float


# Of the weights of portable trainings: see `reptrans.training.schedule`.
ADVERSARIAL_BITS = 16
# As the authors declare them; in their code nothing applies the tenth for encoder and generator in stage III.
PUBLISHED = {"II": Rates(0.0, 0.0, 1e-4, 1e-5, 1e-3), "III": Rates(1e-6, 1e-5, 1e-6, 1e-4, 1e-4)}


@dataclass(frozen=True)
class Stage:
    """Stage II (`moves_encoder` False) or III: `epochs` at the full rates, then `decay` with rates going down linearly.

    In stage II encoder and head stay as they are, buffers included. In both, batch norms of the identity discriminator
    work with fixed statistics, in III those of encoder and head too. `smooth`, `swap`: see `discriminator_labels`.
    `portable`: as in `Plan`, with 16 bits.
    Raises BadValue.
    """

    moves_encoder: bool
    rates: Rates
    weights: fd_gan.Weights = fd_gan.WEIGHTS["paper"]
    epochs: int = 25
    decay: int = 25
    smooth: bool = True
    swap: float = fd_gan.SWAP
    portable: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.decay < 0 or self.epochs + self.decay < 1:
            raise BadValue(f"epochs is {self.epochs} and decay {self.decay}; from 0 on, and one epoch in all.")
        for name, value in (
            self.weights._asdict() | {f"rate of {k}": v for k, v in self.rates._asdict().items()}
        ).items():
            if not 0 <= value < float("inf"):
                raise BadValue(f"the {name} is {value!r}; it must be a number from 0 on.")
        if not any(self.weights[0 if self.moves_encoder else 1 :]):
            raise BadValue("all weights of the terms that can move something are 0, so there is nothing to learn.")

    def share(self, epoch: int) -> float:
        """The share of the highest rates in `epoch`, counted from 0."""
        return 1.0 - max(0, epoch + 1 - self.epochs) / (self.decay + 1)

    @property
    def adversarial(self) -> bool:
        """Whether anything but verification has a weight; if not, generator and discriminators are left alone."""
        return any(self.weights[1:])


class Parts(NamedTuple):
    """The networks of stages II and III."""

    siamese: Siamese
    generator: Generator
    identity: IdentityDiscriminator
    pose: PatchDiscriminator


def parts(baseline: Siamese, pairs: Pairs, seed: int, *, noise: int = 16, channels: int = 8) -> Parts:
    """The networks around a trained baseline: generator and pose discriminator from `seed`, the other one from it.

    The generator's three sizes have `channels` channels and 2 and 4 times as many. Raises ShapeMismatch.
    """
    joints, size = pairs.people.joints, pairs.people.size
    with drawing(seed):
        new = (
            Generator(joints, baseline.encoder.width, size, widths=(channels, 2 * channels, 4 * channels), noise=noise),
            PatchDiscriminator(joints, 2 * channels),
        )
    generator, pose = (net.to(pairs.device, pairs.dtype) for net in new)
    return Parts(baseline, generator, IdentityDiscriminator(baseline), pose)


def train_baseline(siamese: Siamese, pairs: Pairs, plan: Plan, checkpoint: str | Path | None = None) -> pd.DataFrame:
    """Stage I: L_v, encoder and head; rows of `fit`. Published: SGD 0.01, batch 256, 100 epochs, x0.1 every 40."""

    def objective(batch: PairBatch, progress: float):
        logits = siamese(batch.sources)[1]
        terms = {"verification": fd_gan.verification_loss(logits, batch.same)}
        return terms, {"verification_accuracy": accuracy(logits, batch.same.long())}

    return fit(objective, siamese, pairs, plan, checkpoint=checkpoint, label="stage I")


def train_stage(
    parts: Parts, pairs: Pairs, stage: Stage, *, seed: int = 0, checkpoint: str | Path | None = None
) -> pd.DataFrame:
    """Stage II or III, in place: in every step both discriminators, then generator and encoder; one row per epoch.

    `pairs` with targets, unless verification alone has a weight. `seed` of noise and smoothed labels. `checkpoint`: a
    file written after every epoch, from which an interrupted training goes on to the same bits.
    Rows: epoch, step, rate (share of the highest), the weighted terms, and the discriminators' losses, as epoch means.
    Raises Diverged, BadCheckpoint, CannotWrite, BadValue.
    """
    if stage.adversarial and not pairs.targets:
        raise BadValue("this stage generates images, and the pairs have no targets. Make Pairs with targets=True.")
    optimisers = Optimisers(parts, stage)
    known = asdict(stage) | {"seed": seed, "pairs": [pairs.seed, pairs.batch_size, pairs.negatives, len(pairs.people)]}
    keeper = Keeper(parts._asdict(), optimisers, known, None if checkpoint is None else Path(checkpoint))
    with keeping_modes(*parts):
        rows = keeper.resume()
        for epoch in progress(
            range(len(rows), stage.epochs + stage.decay), "stage III" if stage.moves_encoder else "II"
        ):
            rows.append(_epoch(parts, pairs, stage, optimisers, epoch, seed))
            keeper.keep(rows)
    return pd.DataFrame(rows)


class Optimisers(dict[str, torch.optim.Optimizer]):
    """ "main": Adam (0.5, 0.999) of encoder, head and generator; "identity", "pose": SGD of each discriminator.

    Each part has its own highest rate.
    """

    def __init__(self, parts: Parts, stage: Stage):
        siamese, generator, *discriminators = parts
        moving = {"encoder": siamese.encoder, "head": siamese.head} if stage.moves_encoder else {}
        moving |= {"generator": generator}
        groups = [{"params": list(net.parameters()), "rate": getattr(stage.rates, n)} for n, net in moving.items()]
        super().__init__(main=torch.optim.Adam(groups, lr=0.0, betas=(0.5, 0.999)))
        for name, net, rate in zip(("identity", "pose"), discriminators, stage.rates[3:], strict=True):
            group = {"params": list(net.parameters()), "rate": rate}
            self[name] = torch.optim.SGD([group], lr=0.0, momentum=0.9, weight_decay=1e-4)

    def set_share(self, share: float) -> None:
        """Give every part `share` of its highest rate."""
        for optimiser in self.values():
            for group in optimiser.param_groups:
                group["lr"] = group["rate"] * share

    def state_dict(self) -> dict:
        return {name: optimiser.state_dict() for name, optimiser in self.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, optimiser in self.items():
            optimiser.load_state_dict(state[name])


def _epoch(parts: Parts, pairs: Pairs, stage: Stage, optimisers: Optimisers, epoch: int, seed: int) -> dict:
    _set_modes(parts, stage)
    optimisers.set_share(stage.share(epoch))
    draws = generator_of(mixed(seed, epoch))
    sums = Sums(stage.epochs + stage.decay, epoch + 1, pairs.device)
    pairs.epoch, step = epoch, epoch * len(pairs)
    for batch in pairs:
        terms, figures = _step(parts, batch, stage, optimisers, draws)
        step += 1
        sums.add(terms, figures, len(batch.index), step, optimisers["main"].param_groups[0]["lr"])
    return {"epoch": epoch + 1, "step": step, "rate": stage.share(epoch)} | sums.means()


def _set_modes(parts: Parts, stage: Stage) -> None:
    parts.generator.train()
    parts.pose.train()
    for siamese in (parts.identity, parts.siamese):
        # Their other layers have no modes that matter for fixed statistics but dropout, which stage II has no use for.
        siamese.train(siamese is parts.identity or stage.moves_encoder)
        for module in siamese.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _step(
    parts: Parts, batch: PairBatch, stage: Stage, optimisers: Optimisers, draws: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One step of each discriminator, then one of generator and, in stage III, encoder and head: (terms, figures)."""
    with torch.set_grad_enabled(stage.moves_encoder):
        codes, verification = parts.siamese(batch.sources)
    if not stage.adversarial:
        terms = {"verification": stage.weights.verification * fd_gan.verification_loss(verification, batch.same)}
        _descend(optimisers["main"], total_of(terms, {}), stage)
        return terms, {}
    fakes = parts.generator(batch.maps, codes, noise_for(parts.generator, batch, draws))
    figures = _train_discriminators(parts, batch, fakes.detach(), stage, optimisers, draws)
    identity, pose = parts.identity(batch.sources, fakes), parts.pose(batch.maps, fakes)
    weights = stage.weights if stage.moves_encoder else stage.weights._replace(verification=0.0)
    terms = fd_gan.terms(weights, verification, identity, pose, fakes, batch.targets, batch.same)
    _descend(optimisers["main"], total_of(terms, figures), stage)
    return terms, figures


def _train_discriminators(
    parts: Parts, batch: PairBatch, fakes: Tensor, stage: Stage, optimisers: Optimisers, draws: torch.Generator
) -> dict[str, Tensor]:
    losses = {}
    for name, net, given in (("identity", parts.identity, batch.sources), ("pose", parts.pose, batch.maps)):
        labels = fd_gan.discriminator_labels(draws, stage.smooth, stage.swap)
        loss = fd_gan.discriminator_loss(net(given, batch.targets), net(given, fakes), labels)
        _descend(optimisers[name], loss, stage)
        losses[f"discriminator_{name}"] = loss.detach()
    return losses


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor, stage: Stage) -> None:
    optimiser.zero_grad()
    moving = [p for group in optimiser.param_groups for p in group["params"]]
    # `inputs`: a generator's step leaves no gradients in the discriminators, nor theirs in it.
    loss.backward(inputs=moving)
    optimiser.step()
    if stage.portable:
        round_weights(moving, ADVERSARIAL_BITS)


def noise_for(generator: Generator, batch: PairBatch, draws: torch.Generator) -> Tensor:
    """Normal noise (2b, z), the same for the two of each pair; drawn on the CPU, so the same on every device."""
    noise = torch.randn(len(batch.same), generator.noise, generator=draws, dtype=torch.float64)
    return noise.to(batch.sources).repeat(2, 1)


def generated(parts: Parts, pairs: Pairs, count: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """What the generator makes of `count` sources: "source", "pose", "generated", "real" (count, c, h, w) in [0, 1].

    "pose" is the brightest of the joints' maps, as grey. All in eval mode; `seed` of the noise.
    """
    batch = next(iter(pairs))
    noise = noise_for(parts.generator, batch, generator_of(seed))
    with evaluating(*parts), torch.no_grad():
        fakes = parts.generator(batch.maps, parts.siamese.encoder(batch.sources), noise)
    shown = {"source": batch.sources, "pose": 2 * batch.maps.amax(1, keepdim=True).expand_as(fakes) - 1}
    shown |= {"generated": fakes, "real": batch.targets}
    return {name: ((images[:count] + 1) / 2).float().cpu() for name, images in shown.items()}
