#!/bin/sh
# Looks for what breaks a connection that is handed over: random requests, then libFuzzer, then orders of threads; at last
# clients that say and do anything, against the service itself.
#
#   tests/fuzz/fuzz.sh [SECONDS]
#
# Each takes a quarter of SECONDS (600). What libFuzzer finds is kept in regressions/: `cargo test` tries that first.
set -eu
cd "$(dirname "$0")"
share=$((${1:-600} / 4))
target=${CARGO_TARGET_DIR:-../../target/fuzz}
host=$(rustc --print host-tuple)

# Runs a command over and over, and says how much it did: repeat COUNT WHAT COMMAND ...
repeat() {
    count=$1 what=$2
    shift 2
    end=$(($(date +%s) + share))
    sum=0
    while [ "$(date +%s)" -lt $end ]; do
        "$@" || exit
        sum=$((sum + count))
    done
    echo "$what: $sum, all as they should be"
}

cargo test --quiet --no-run
repeat 40000 "random connections" env PROPTEST_CASES=10000 cargo test --quiet --test ledger

# libFuzzer looks at what is reached, so everything has to tell. This is what cargo-fuzz sets, but for a sanitizer: it
# would need a nightly compiler, and there is no unsafe code to watch.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target, what builds the code is not concerned.
RUSTFLAGS=$(echo "$coverage" | tr -s '\n ' ' ') cargo build --quiet --release --features libfuzzer --bin fuzz --target "$host"
corpus=$target/fuzz-corpus
mkdir -p "$corpus"
"$target/$host/release/fuzz" -max_total_time=$share -max_len=1000 -dict=http.dict -print_final_stats=1 -verbosity=0 \
    -print_funcs=0 -artifact_prefix=regressions/ "$corpus" regressions seeds

cargo test --quiet --features shuttle --no-run
repeat 8000 "orders of threads" env ORDERS=1000 cargo test --quiet --features shuttle --test orders

cd ../..
cargo run --quiet --package proof -- storm --seconds $share
