"""Layers by name, on any network: list them, look at them, cut the network at them.

Names are those of `named_modules`. A layer stands for the *output* of that module (of its last call, where the module
is called more than once).
"""

from reptrans.layers.axes import channel_axes
from reptrans.layers.cut import cuttable_layers, end, front
from reptrans.layers.network import called
from reptrans.layers.record import record
from reptrans.layers.sheet import layer_table

__all__ = ["called", "channel_axes", "cuttable_layers", "end", "front", "layer_table", "record"]
