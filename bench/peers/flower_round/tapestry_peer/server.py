"""FedAvg over two nodes. Appends the times of each round's start and of the end of its aggregation to $FLWR_EVENTS."""
import json
import os
import time

import numpy
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


def shapes(layers=30, vocab=49152, width=576, kv=192, ffn=1536):
    """The tensors of a model with the shape of SmolLM2-135M."""
    found = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        of_layer = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (ffn, width), "mlp.up_proj": (ffn, width),
            "mlp.down_proj": (width, ffn), "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    return found


def note(kind, **more):
    with open(os.environ["FLWR_EVENTS"], "a") as file:
        file.write(json.dumps({"t": time.time(), "ev": kind, **more}) + "\n")


class Timed(FedAvg):
    def configure_train(self, server_round, *arguments, **named):
        note("round_start", round=server_round)
        return super().configure_train(server_round, *arguments, **named)

    def aggregate_train(self, server_round, replies):
        result = super().aggregate_train(server_round, list(replies))
        note("agg_end", round=server_round)
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    random = numpy.random.default_rng(0)
    base = {name: Array(random.standard_normal(shape, dtype=numpy.float32)) for name, shape in shapes().items()}
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(base), num_rounds=int(context.run_config["num-server-rounds"]))
    with open("/proc/self/status") as status:
        peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    note("main_end", peak_rss_mb=peak_kib * 1024 / 1e6)
