"""What all objectives share: contract, inputs, rules of hyperparameters, plain functions."""
