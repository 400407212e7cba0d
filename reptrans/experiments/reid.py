"""The experiment of the re-identification notebook: do codes of FD-GAN know less of the pose, and are they better?"""

import copy
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field
from torch import Tensor

from reptrans.bench import verdicts
from reptrans.distillation.methods.fd_gan import WEIGHTS, Weights
from reptrans.experiments.parameters import Count, Exact, NotNegative, Place, Positive, Weight
from reptrans.progress import progress
from reptrans.randomness import drawing
from reptrans.reid.architectures import Encoder, Siamese, Verification, encoder
from reptrans.reid.people import Pairs, People, Reid, landmarks_known
from reptrans.reid.scoring import find_again, pose_r2
from reptrans.reid.sources import load_market, stick_figures
from reptrans.reid.stages import ADVERSARIAL_BITS, Parts, Rates, Stage, generated, parts, train_baseline, train_stage
from reptrans.training import Plan

VERIFICATION = Weights(1.0, 0.0, 0.0, 0.0, 0.0)
SCORES = ("mAP", "rank1", "less_pose")
READABLE = 0.3  # pose R² from which there is something to lose


class ReidRun(Place):
    """People, encoder, and the three stages.

    `folder`: of Market-1501's form, with `landmarks`, a file; "" for stick figures, whose `identities`, `poses`,
    `held_out` and `clutter` are those of `stick_figures`. `height`: of the images, twice their width. `model`: see
    `encoder`; `channels` of its first convolution, `generator_channels` of the generator's. `negatives`: pairs of
    different persons for one of the same. `weights`: "paper" or "authors". `epochs_1`, `lr_1`: stage I, one_cycle.
    `epochs_2`, `epochs_3`: stages II and III, half of them at the full rates. `lr_generator`, `lr_discriminators` in
    both (a tenth for the one of identities); `lr_encoder` in stage III, and in the control.
    """

    dtype: Exact = "auto"
    folder: str = ""
    landmarks: str = ""
    identities: int = Field(48, ge=4)
    poses: int = Field(20, ge=6)
    held_out: int = Field(24, ge=2)
    height: int = Field(32, ge=16)
    clutter: NotNegative = 0
    model: str = "convs_flat"
    channels: Count = 16
    generator_channels: Count = 6
    weights: Literal[tuple(WEIGHTS)] = "paper"
    seeds: Count = 3
    epochs_1: Count = 30
    epochs_2: Count = 6
    epochs_3: Count = 6
    lr_1: Positive = 0.05
    lr_generator: Weight = 2e-3
    lr_discriminators: Weight = 1e-2
    lr_encoder: Weight = 2e-3
    batch_size: int = Field(16, ge=2)
    negatives: Weight = 3.0
    sigma: Positive = 1.5
    noise: Count = 16

    def load(self) -> Reid:
        """The people that the parameters name; raises what `stick_figures` and `load_market` do."""
        if not self.folder:
            return stick_figures(self.identities, self.poses, self.held_out, height=self.height, clutter=self.clutter)
        return load_market(self.folder, (self.height, self.height // 2), self.landmarks or None)

    def plan(self, seed: int) -> Plan:
        """Of stage I."""
        return Plan(
            epochs=self.epochs_1, lr=self.lr_1, schedule="one_cycle", precision=self.precision, portable=True,
            bits=ADVERSARIAL_BITS, seed=seed,
        )  # fmt: skip

    def stage(self, number: Literal[2, 3], weights: Weights | None = None) -> Stage:
        """Stage II or III; with other `weights`, a control."""
        epochs = self.epochs_2 if number == 2 else self.epochs_3
        rates = Rates(
            self.lr_encoder, self.lr_encoder, self.lr_generator, self.lr_discriminators / 10, self.lr_discriminators
        )
        weights = weights or WEIGHTS[self.weights]
        return Stage(number == 3, rates, weights, epochs - epochs // 2, epochs // 2, portable=True)

    def pairs(self, people: People, seed: int, targets: bool = True) -> Pairs:
        return Pairs(
            people, self.batch_size, negatives=self.negatives, targets=targets, sigma=self.sigma, seed=seed,
            **self.place,
        )  # fmt: skip


def reidentify(p: ReidRun, people: Reid, folder: Path) -> tuple[pd.DataFrame, dict[str, dict[str, Tensor]]]:
    """Stages I to III for every seed, and a control; (rows, pictures).

    Rows: seed; condition: "untrained", "stage I", "control", stage I trained on with verification alone, as long and at
    the same rates as in stage III, "stage III"; rank1, mAP, pose_r2 of the encoder on held-out people; verification,
    the last epoch's term. Pictures: of the first seed, "stage II" and "stage III", as `generated` of held-out people.
    What was trained is kept in `folder`, from which an interrupted run goes on.
    Raises BadData before any training where an image has no landmark.
    """
    for part in (people.train, people.query, people.gallery):
        landmarks_known(part)
    rows, pictures = [], {}
    for seed in progress(range(p.seeds), "seeds"):
        found, shown = _one_seed(p, people, seed, folder)
        rows += [{"seed": seed} | row for row in found]
        pictures = pictures or shown
    return pd.DataFrame(rows), pictures


def gains(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """(table, note): what stage III gains over the control, which trained as long without generating; see `verdicts`.

    Rows for mAP, rank1 and less_pose, which is pose_r2 turned round. Where the control's pose_r2 is below 0.3 on
    average there is hardly a pose to lose: less_pose then has no verdict, and the note says so.
    """
    wide = rows.assign(less_pose=-rows["pose_r2"]).pivot(index="seed", columns="condition", values=list(SCORES))
    wide.columns = [" ".join(both) for both in wide.columns]
    table, note = verdicts(wide, {f"{score} stage III": f"{score} control" for score in SCORES})
    table.insert(0, "score", list(SCORES))
    table = table.drop(columns=["method", "over", "published"])
    legible = -wide["less_pose control"].mean()
    if legible < READABLE:
        table.loc[table["score"] == "less_pose", "verdict"] = ""
        more = f"The control's code tells {legible:.2f} of the pose, less than {READABLE}: too little to judge by."
        note = " ".join(filter(None, (note, more)))
    return table, note


def _one_seed(p: ReidRun, people: Reid, seed: int, folder: Path) -> tuple[list[dict], dict]:
    pairs, unseen = p.pairs(people.train, seed), p.pairs(people.gallery, seed)
    siamese = _siamese(p, people.train.size, seed).to(**p.place)
    rows = [_judged("untrained", siamese.encoder, people)]
    kept = {name: folder / f"{name}-s{seed}.safetensors" for name in ("I", "II", "III", "control")}
    done = train_baseline(siamese, p.pairs(people.train, seed, targets=False), p.plan(seed), kept["I"])
    rows.append(_judged("stage I", siamese.encoder, people, done))
    alone = parts(copy.deepcopy(siamese), pairs, seed, noise=p.noise, channels=p.generator_channels)
    done = train_stage(alone, pairs, p.stage(3, VERIFICATION), seed=seed, checkpoint=kept["control"])
    rows.append(_judged("control", alone.siamese.encoder, people, done))
    whole = parts(siamese, pairs, seed, noise=p.noise, channels=p.generator_channels)
    train_stage(whole, pairs, p.stage(2), seed=seed, checkpoint=kept["II"])
    pictures = {"stage II": _pictures(whole, unseen)}
    done = train_stage(whole, pairs, p.stage(3), seed=seed, checkpoint=kept["III"])
    rows.append(_judged("stage III", siamese.encoder, people, done))
    return rows, pictures | {"stage III": _pictures(whole, unseen)}


def _siamese(p: ReidRun, size: tuple[int, int], seed: int) -> Siamese:
    code = encoder(p.model, size, seed, p.channels)
    with drawing(seed):
        return Siamese(code, Verification(code.width).float())


def _judged(condition: str, code: Encoder, people: Reid, rows: pd.DataFrame | None = None) -> dict:
    found = find_again(code, people.query, people.gallery)
    found = {"rank1": found["rank1"], "mAP": found["mAP"], "pose_r2": pose_r2(code, people.gallery)}
    last = {} if rows is None else {"verification": rows["verification"].iloc[-1]}
    return {"condition": condition} | found | last


def _pictures(whole: Parts, unseen: Pairs) -> dict[str, Tensor]:
    unseen.epoch = 0
    return generated(whole, unseen)
