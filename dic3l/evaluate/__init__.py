"""How good frozen features are: a linear probe for segmentation, with scores whose averaging is stated."""
