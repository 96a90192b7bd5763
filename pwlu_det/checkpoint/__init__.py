"""Reading, writing and exporting files of weights."""
