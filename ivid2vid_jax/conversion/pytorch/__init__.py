"""What an exported folder carries: PyTorch files that stand alone. Nothing here is imported by this package."""
