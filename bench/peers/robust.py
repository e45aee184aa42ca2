"""Robust rules as one writes them with NumPy or PyTorch: a tensor of all models at a time, written as it comes.

usage: robust.py MODE JOB.json
"""

import job

mode, task = job.read()
trim = task["parameters"].get("trim", 0)
library = mode.split("_")[0]

if library == "numpy":
    import numpy as np

    def stack(name):
        return np.stack([np.frombuffer(file.read(name), np.float32) for file in files])

    def median(rows):
        return np.median(rows, axis=0)

    def trimmed_mean(rows):
        rows.sort(axis=0)
        return rows[trim : len(rows) - trim].mean(axis=0, dtype=np.float32)

    modes = {"numpy_median": median, "numpy_trimmed_mean": trimmed_mean}
else:
    import torch

    def stack(name):
        return torch.stack([torch.frombuffer(file.read(name), dtype=torch.float32) for file in files])

    def median(rows):
        # For an odd number of rows; for an even one PyTorch takes the lower middle value.
        return rows.median(dim=0).values.numpy()

    def trimmed_mean(rows):
        rows = rows.sort(dim=0).values
        return rows[trim : len(rows) - trim].mean(dim=0).numpy()

    modes = {"torch_median": median, "torch_trimmed_mean": trimmed_mean}

rule = modes[mode]
job.ready()
files = [job.Tensors(model) for model in task["models"]]
job.write(task["output"], files[0], (rule(stack(name)) for name in files[0].names()))
job.done()
