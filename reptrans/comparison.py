"""An old address of `reptrans.experiments.similarity`."""

from reptrans.experiments.similarity import *  # noqa: F403
