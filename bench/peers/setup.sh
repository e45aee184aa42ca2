#!/bin/sh
# Sets up the peers' Python environment in DIR/a (3 GB: PyTorch comes with it). usage: setup.sh DIR
set -eu
dir="${1:-${PEERS_HOME:?name a folder: setup.sh DIR}}"
mkdir -p "$dir"
python3 -m venv "$dir/a"
"$dir/a/bin/pip" install --quiet 'flwr==1.41.0' 'mergekit==0.1.5' torch safetensors numpy 'pymerkle==7.0.0'
"$dir/a/bin/python" -c 'import flwr, mergekit.merge, numpy, safetensors, torch'
echo "ready: cargo xtask bench merge --peers $dir"
