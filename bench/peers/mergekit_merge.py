"""mergekit with its default options, from configuration to written model. usage: mergekit_merge.py linear|ties|dare_ties JOB.json"""

import job

mode, task = job.read()

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

PARAMETERS = {"linear": (), "ties": ("density",), "dare_ties": ("density",)}

job.ready()
total = sum(task["weights"])
parameters = {name: task["parameters"][name] for name in PARAMETERS[mode]}
config = {
    "merge_method": mode,
    "dtype": task["dtype"],
    "models": [
        {"model": model, "parameters": {"weight": weight / total, **parameters}}
        for model, weight in zip(task["models"], task["weights"])
    ],
}
if task["base"]:
    config["base_model"] = task["base"]
# The models have no tokenizer that could be copied.
run_merge(MergeConfiguration.model_validate(config), task["output"], MergeOptions(copy_tokenizer=False, quiet=True))
job.done()
