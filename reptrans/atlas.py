"""An old address of `reptrans.experiments.atlas`."""

from reptrans.experiments.atlas import *  # noqa: F403
