#!/bin/bash
# Rounds of a Flower deployment on loopback: one SuperLink, two SuperNodes, no TLS, trivial training of 134.5 million f32
# parameters. Prints the events of its server as JSON lines. usage: run.sh VENV WORK ROUNDS
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
venv="$1" work="$2" rounds="$3"
rm -rf "$work" && mkdir -p "$work/home"
cp -r "$here" "$work/app" && cd "$work/app"
export FLWR_HOME="$work/home" FLWR_TELEMETRY_ENABLED=0 FLWR_EVENTS="$work/events.jsonl" PATH="$venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1
port=$((20000 + RANDOM % 10000))
printf '[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:%s"\ninsecure = true\n' "$port" > "$FLWR_HOME/config.toml"
started=()
trap 'kill "${started[@]}" 2> /dev/null || true; wait 2> /dev/null || true' EXIT
flower-superlink --insecure --host 127.0.0.1 --port "$port" --disable-runtime-dependency-installation > "$work/link.log" 2>&1 &
started+=($!)
sleep 6
for node in 0 1; do
    flower-supernode --insecure --superlink "127.0.0.1:$port" --host 127.0.0.1 --port $((port + 1 + node)) \
        --node-config "partition-id=$node num-partitions=2" > "$work/node$node.log" 2>&1 &
    started+=($!)
done
sleep 5
timeout 540 flwr run . bench --stream --run-config "num-server-rounds=$rounds" > "$work/run.log" 2>&1 || true
cat "$FLWR_EVENTS"
