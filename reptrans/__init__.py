"""reptrans: representation transfer, or what one trained network knows and how another can use it.

Layers are named as `named_modules` names them; data sets and networks have names (see `python -m reptrans`).
Importing this package is quick; a name is loaded when it is first used.
"""

from importlib import import_module, metadata

__version__ = metadata.version("reptrans")

_HOMES = {
    "reptrans.data": ("Dataset", "Loader", "Split", "load_dataset"),
    "reptrans.models": ("build", "model_names"),
    "reptrans.layers": ("cuttable_layers", "end", "front", "layer_table", "record"),
    "reptrans.training": ("Plan", "evaluate", "fit", "predict", "train_classifier"),
    "reptrans.checkpoints": ("load_network", "trained"),
    "reptrans.similarity": ("MEASURES", "Moments", "compare", "linear_cka"),
    "reptrans.distillation": ("METHODS", "Method", "Pair", "Stage", "distill"),
    "reptrans.matching": ("Match", "Teacher"),
    "reptrans.extension": ("Hidden", "Outputs", "extend"),
    "reptrans.inputs": ("class_logit", "match", "optimise_input"),
    "reptrans.merging": ("aligned", "match_models"),
    "reptrans.l2t": ("Transfer", "meta_gradient"),
    "reptrans.stitching": ("Stitch", "StitchedNetwork", "direct_matching"),
    "reptrans.experiments.autoencoding": ("autoencode",),
    "reptrans.experiments.stitched": ("Stitching", "StitchingSettings"),
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
