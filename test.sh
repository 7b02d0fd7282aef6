#!/usr/bin/env bash
# Runs every check and every test, installing what they need. CI runs exactly this.
#
#   ./test.sh          everything (15 to 30 minutes the first time on two cores, depending on what else they do: time ./test.sh)
#   ./test.sh quick    without browsers, node and the lints
set -euo pipefail
cd "$(dirname "$0")"
quick=${1:-}

# Properties are checked with the same inputs on every run, so that a run that passed passes again. For others:
# PROPTEST_RNG_SEED=$RANDOM ./test.sh quick; by cargo test alone they are new ones each time.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1}

say() { printf '\n── %s\n' "$*"; }
has() { command -v "$1" >/dev/null 2>&1; }

# Debian's packages, as root or by sudo; elsewhere, what is missing is named.
install() {
  local missing=()
  for package in "$@"; do
    case $package in
      chromium) has chromium || missing+=(chromium) ;;
      firefox-esr) has firefox-esr || missing+=(firefox-esr) ;;
      nodejs) has node || missing+=(nodejs npm) ;;
      iproute2) has ip || missing+=(iproute2) ;;
      python3-venv) python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3 python3-venv) ;;
    esac
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "installing ${missing[*]}"
  if ! has apt-get; then
    echo "please install: ${missing[*]}" >&2
    exit 1
  fi
  local root=()
  [ "$(id -u)" -eq 0 ] || root=(sudo)
  "${root[@]}" apt-get update -q
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -qy --no-install-recommends "${missing[@]}"
}

has cargo || { echo "please install Rust first: https://rustup.rs" >&2; exit 1; }
cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
rustup target list --installed | grep -qx wasm32-unknown-unknown || rustup target add wasm32-unknown-unknown

if [ "$quick" = quick ]; then
  say "tests, without browsers and node"
  exec env WAXWING_PAGE=0 cargo test --locked --features test-utils
fi

install nodejs chromium firefox-esr python3-venv iproute2

say "format"
cargo fmt --check
say "the core alone, for this machine and for wasm32"
cargo check --locked --lib --no-default-features
cargo check --locked --lib --no-default-features --features web --target wasm32-unknown-unknown
say "lints"
WAXWING_PAGE=0 cargo clippy --locked --all-targets --features test-utils -- -D warnings
say "documentation"
WAXWING_PAGE=0 RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
if has cargo-deny; then
  say "licences, duplicates, sources"
  # Crates of other systems too, which no build here has brought.
  cargo fetch --locked --quiet
  cargo deny --offline check bans licenses sources
fi
say "tests, the page and real browsers included"
WAXWING_PAGE=1 cargo test --locked --features test-utils
