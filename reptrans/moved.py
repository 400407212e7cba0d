"""Old addresses: what stands in `reptrans.experiments` is still found at the subject that it once stood below."""

from importlib import import_module

_FILES = {
    "reptrans.stitching": ("stitched", "stitching"),
    "reptrans.distillation": ("distillation",),
    "reptrans.extension": ("extension",),
    "reptrans.inputs": ("autoencoding", "model_similarity"),
    "reptrans.l2t": ("l2t",),
    "reptrans.merging": ("merging",),
}


def moved(package: str, name: str) -> object:
    """What was called `package`.`name` before it went to `reptrans.experiments`; AttributeError for any other name."""
    for file in () if name.startswith("_") else _FILES[package]:
        found = vars(import_module(f"reptrans.experiments.{file}")).get(name)
        if getattr(found, "__module__", "") == f"reptrans.experiments.{file}":
            return found
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
