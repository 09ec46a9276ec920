"""PyTorch files that are copied into exported folders; this package imports none of them."""
