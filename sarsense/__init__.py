"""What a SAR corpus is and how it is made. Imports no torch and no dask."""

__version__ = "0.10.0"
