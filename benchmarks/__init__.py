"""The figures: what ckptd costs, beside the machine's limit and beside its peers. `python -m benchmarks.run`."""
