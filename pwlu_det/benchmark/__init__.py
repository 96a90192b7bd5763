"""Times and memory of activations, by themselves and in models, as Markdown tables; tools/benchmark.py."""
