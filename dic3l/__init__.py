"""DIC3L (arXiv 2511.07808): the method and its trainer. Reads corpora by `sarsense.corpus` and `sarsense.shards`."""

__version__ = "0.7.0"
