"""reptrans: representation transfer, or what one trained network knows and how another can use it.

Layers are named as `named_modules` names them; data sets and networks have names (see `python -m reptrans`).
Importing this package is quick; a name is loaded when it is first used.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which do not run `__getattr__`
    from reptrans.checkpoints import load_network as load_network
    from reptrans.checkpoints import trained as trained
    from reptrans.data import Dataset as Dataset
    from reptrans.data import Loader as Loader
    from reptrans.data import Split as Split
    from reptrans.data import load_dataset as load_dataset
    from reptrans.distillation import METHODS as METHODS
    from reptrans.distillation import Method as Method
    from reptrans.distillation import Pair as Pair
    from reptrans.distillation import Stage as Stage
    from reptrans.distillation import distill as distill
    from reptrans.experiments.autoencoding import autoencode as autoencode
    from reptrans.experiments.stitched import Stitching as Stitching
    from reptrans.experiments.stitched import StitchingSettings as StitchingSettings
    from reptrans.extension import Hidden as Hidden
    from reptrans.extension import Outputs as Outputs
    from reptrans.extension import extend as extend
    from reptrans.inputs import class_logit as class_logit
    from reptrans.inputs import invert as invert
    from reptrans.inputs import match as match
    from reptrans.inputs import optimise_input as optimise_input
    from reptrans.l2t import Transfer as Transfer
    from reptrans.l2t import meta_gradient as meta_gradient
    from reptrans.layers import cuttable_layers as cuttable_layers
    from reptrans.layers import end as end
    from reptrans.layers import front as front
    from reptrans.layers import layer_table as layer_table
    from reptrans.layers import record as record
    from reptrans.matching import Match as Match
    from reptrans.matching import Teacher as Teacher
    from reptrans.merging import aligned as aligned
    from reptrans.merging import match_models as match_models
    from reptrans.models import build as build
    from reptrans.models import model_names as model_names
    from reptrans.runs import Run as Run
    from reptrans.shortcuts import stitch as stitch
    from reptrans.similarity import MEASURES as MEASURES
    from reptrans.similarity import Features as Features
    from reptrans.similarity import Moments as Moments
    from reptrans.similarity import calibrate as calibrate
    from reptrans.similarity import compare as compare
    from reptrans.similarity import linear_cka as linear_cka
    from reptrans.stitching import Stitch as Stitch
    from reptrans.stitching import StitchedNetwork as StitchedNetwork
    from reptrans.stitching import direct_matching as direct_matching
    from reptrans.sweeps import sweep as sweep
    from reptrans.training import Plan as Plan
    from reptrans.training import evaluate as evaluate
    from reptrans.training import fit as fit
    from reptrans.training import predict as predict
    from reptrans.training import train_classifier as train_classifier

__version__ = metadata.version("reptrans")

_HOMES = {
    "reptrans.data": ("Dataset", "Loader", "Split", "load_dataset"),
    "reptrans.models": ("build", "model_names"),
    "reptrans.layers": ("cuttable_layers", "end", "front", "layer_table", "record"),
    "reptrans.training": ("Plan", "evaluate", "fit", "predict", "train_classifier"),
    "reptrans.checkpoints": ("load_network", "trained"),
    "reptrans.similarity": ("MEASURES", "Features", "Moments", "calibrate", "compare", "linear_cka"),
    "reptrans.distillation": ("METHODS", "Method", "Pair", "Stage", "distill"),
    "reptrans.matching": ("Match", "Teacher"),
    "reptrans.extension": ("Hidden", "Outputs", "extend"),
    "reptrans.inputs": ("class_logit", "invert", "match", "optimise_input"),
    "reptrans.merging": ("aligned", "match_models"),
    "reptrans.l2t": ("Transfer", "meta_gradient"),
    "reptrans.stitching": ("Stitch", "StitchedNetwork", "direct_matching"),
    "reptrans.experiments.autoencoding": ("autoencode",),
    "reptrans.experiments.stitched": ("Stitching", "StitchingSettings"),
    "reptrans.shortcuts": ("stitch",),
    "reptrans.runs": ("Run",),
    "reptrans.sweeps": ("sweep",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'reptrans' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
