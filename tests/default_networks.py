"""The networks that the notebooks' defaults begin with, as the package ships them; run to make them again.

    python tests/default_networks.py

trains each by its recipe, from nothing, and puts it into the package, its weights in single precision: portable
trainings end with such weights anyway.
"""

from ast import literal_eval
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

from papermill import inspect_notebook
from torch import nn

from reptrans.checkpoints import load_tensors, save_tensors, trained
from reptrans.data import Dataset
from reptrans.experiments.atlas import AtlasRun
from reptrans.experiments.distillation import DistillationRun
from reptrans.experiments.invariances import InvariancesRun, load
from reptrans.experiments.l2t import L2TRun, tasks
from reptrans.experiments.merging import MergingRun
from reptrans.experiments.model_similarity import ModelSimilarityRun
from reptrans.experiments.stitching import StitchingRun
from reptrans.notebook import Parameters
from reptrans.paths import shipped_networks
from reptrans.tensorfiles import digest_of

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

_Run = TypeVar("_Run", bound=Parameters)


class Default(NamedTuple):
    """One shipped network: what `trained` is told."""

    model: str
    dataset: Dataset
    seed: int
    recipe: dict

    def trained(self, **where) -> nn.Module:
        return trained(self.model, self.dataset, self.seed, **self.recipe, **where)


def defaults() -> Iterator[Default]:
    """Every shipped network. A few that are trained within seconds are left out, since they are large."""
    stitching, similarity = stored(StitchingRun, "stitching"), stored(ModelSimilarityRun, "model_similarity")
    merging, atlas = stored(MergingRun, "model_merging"), stored(AtlasRun, "atlas")
    taught, learning = stored(DistillationRun, "feature_distillation"), stored(L2TRun, "l2t_ww")

    def seeds(model: str, dataset: Dataset, count: int, recipe: Callable[[int], dict]) -> Iterator[Default]:
        return (Default(model, dataset, seed, recipe(seed)) for seed in range(count))

    yield from seeds(stitching.front_model, stitching.load(), stitching.seeds, stitching.recipe)
    # The judge of input_autoencoding is the fourth of these.
    yield from seeds("resnet8", similarity.load(), 4, similarity.recipe)
    yield from seeds("cnn3_w16", similarity.load(), similarity.seeds, similarity.recipe)
    yield from seeds(atlas.front_model, atlas.load(), atlas.seeds, atlas.stitching("conv1").recipe)
    yield from seeds(merging.model, merging.load(), 2 * merging.pairs, merging.recipe)
    looking = stored(InvariancesRun, "invariances")
    for dataset in load(looking).train.values():
        yield from seeds(looking.model, dataset, looking.seeds, looking.recipe)
    yield Default(taught.teacher, taught.load().with_validation(taught.holdout), 0, taught.teacher_recipe())
    yield Default(learning.source_model, tasks(learning)[0], 0, learning.source_recipe())


def stored(model: type[_Run], notebook: str) -> _Run:
    """The parameters as the notebook declares them."""
    declared = inspect_notebook(NOTEBOOKS / f"{notebook}.ipynb").items()
    return model(**{name: literal_eval(entry["default"]) for name, entry in declared})


def make(folder: Path) -> None:
    """Train every one and write it into `folder`, in place of all that was there."""
    with TemporaryDirectory() as scratch:
        for default in defaults():
            default.trained(folder=scratch, shipped=False)
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.safetensors"):
            old.unlink()
        for path in sorted(Path(scratch).glob("*.safetensors")):
            state, meta = load_tensors(path)
            state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
            meta = meta | {"digest": digest_of(state, meta["recipe"]), "rows": meta["rows"][-1:]}
            save_tensors(folder / path.name, state, meta)


if __name__ == "__main__":
    make(shipped_networks())
