"""What runs where: the Dask graph of a build, the processes of a training run, the table of an evaluation."""
