"""Data sets as tensors: `load_dataset` gives a Dataset, its `loader` gives normalised, augmented batches."""

from reptrans.data.dataset import Dataset
from reptrans.data.load import dataset_names, load_dataset
from reptrans.data.loader import Batch, Loader
from reptrans.data.split import Split
from reptrans.data.streamed import Streamed
from reptrans.data.text import TextDataset

__all__ = ["Batch", "Dataset", "Loader", "Split", "Streamed", "TextDataset", "dataset_names", "load_dataset"]
