"""The weighted mean as others compute it. usage: mean.py MODE JOB.json"""

import job

mode, task = job.read()
models, counts = task["models"], task["weights"]
total = sum(counts)

if mode == "flower_aggregate":
    from flwr.server.strategy.aggregate import aggregate
    from safetensors.numpy import load_file

    job.ready()
    results = [(list(load_file(job.weights(model)).values()), count) for model, count in zip(models, counts)]
    mean = aggregate(results)
elif mode == "flower_arrayrecords":
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
    from safetensors.numpy import load_file

    job.ready()
    records = []
    for model, count in zip(models, counts):
        arrays = ArrayRecord({name: Array(value) for name, value in load_file(job.weights(model)).items()})
        records.append(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": count})}))
    mean = aggregate_arrayrecords(records, "num-examples")
elif mode == "numpy_stream":
    import numpy as np

    job.ready()
    files = [job.Tensors(model) for model in models]
    mean = {}
    for name in files[0].names():
        parts = (np.frombuffer(f.read(name), np.float32) * np.float32(c / total) for f, c in zip(files, counts))
        mean[name] = next(parts)
        for part in parts:
            mean[name] += part
elif mode in ("torch_state_dicts", "torch_state_dicts_saved"):
    import os

    import torch
    from safetensors.torch import load_file, save_file

    job.ready()
    with torch.inference_mode():
        dicts = [load_file(job.weights(model)) for model in models]
        mean = {name: sum(d[name] * (c / total) for d, c in zip(dicts, counts)) for name in dicts[0]}
    if mode == "torch_state_dicts_saved":
        os.makedirs(task["output"])
        save_file(mean, job.weights(task["output"]))
else:
    raise SystemExit(f"there is no mode {mode}")

job.done()
