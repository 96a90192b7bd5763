"""Analysis of trained models: plots of learned activations."""
