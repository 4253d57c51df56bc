"""What runs through torch until a GPU has the kernels."""
