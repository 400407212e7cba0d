"""An old address of `reptrans.experiments.classifier`."""

from reptrans.experiments.classifier import *  # noqa: F403
