"""The implementation of tools/benchmark.py: time and memory of activations, alone and in models."""
