"""Flower's side of `cargo xtask bench round`: the same model, the same trivial training, FedAvg."""
