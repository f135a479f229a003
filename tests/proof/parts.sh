#!/bin/sh
# The template's own parts of tests/all.sh, which reads this; how many of them run side by side.

# shellcheck disable=SC2034 # tests/all.sh has a use for it
laboratory=proof

# Tests of what is inside the crates are included where cargo fmt does not see them.
format() {
    cargo fmt --all --check &&
        rustfmt --edition 2024 --check src/hitless/tests/unit/*.rs src/hitless/layers/tests/unit/*.rs tests/proof/unit/*.rs &&
        tests/template.sh is_in_step
}

# The machinery's own files, in memory: random connections, and orders of threads. In its folder, where its build is
# configured.
memory() {
    cd tests/fuzz || exit
    cargo fmt --all --check &&
        cargo clippy --quiet --workspace --all-targets --features shuttle -- --deny warnings &&
        cargo test --quiet && cargo test --quiet --features shuttle --test orders
}

# The manifests for Kubernetes are as its current release and the two before have them; of the Gateway API, no registry has that.
# shellcheck disable=SC2154 # tests/all.sh has the name, and a folder for results
manifests() {
    needs python3
    [ -d target/kubernetes ] || cannot "kubernetes-validate is missing (tests/setup.sh test)"
    cargo build --quiet --bin "$name" || exit
    binary=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/$name
    printf 'unit.credentials = ["listen"]\nunit.memory_max = "infinity"\n' >"$results/config.toml"
    "$binary" kubernetes >"$results/plain.yaml"
    "$binary" --config "$results/config.toml" kubernetes --canary next:1 --weight 10 >"$results/full.yaml"
    for file in "$results/plain.yaml" "$results/full.yaml"; do
        grep -q '^kind: HTTPRoute' "$file" && sed -i '/^# Of the Gateway API/,$d' "$file" || exit
    done
    PYTHONPATH=target/kubernetes python3 -m kubernetes_validate --strict --no-warn --kubernetes-version 1.35 \
        --kubernetes-version 1.36 --kubernetes-version 1.37 "$results/plain.yaml" "$results/full.yaml"
}

# Clients that say and do anything, while the service is restarted.
storm() { cargo run --quiet --package proof -- storm; }

# From the release before to this one and back, under load. It is built of its commit.
releases() {
    needs git
    [ "$(git rev-parse --is-shallow-repository)" = false ] || git fetch --quiet --unshallow || cannot "the history is not all there: git fetch --unshallow"
    cargo run --quiet --package proof -- releases
}

# The alerts for Prometheus fire when they should, and else do not.
alerts() {
    promtool=target/promtool/usr/bin/promtool
    [ -x "$promtool" ] || { promtool=promtool && needs promtool; }
    "$promtool" check rules deploy/alerts.yml && "$promtool" test rules tests/proof/alerts.yml
}

template() { needs git && tests/template.sh; }
postgres() { needs git && tests/template.sh postgres; }

# What the parts on hosts are run with, built while others wait.
built() { cargo build --quiet --release --package proof --bin proof && cargo build --quiet --release --bin hitless-template; }

# Twenty restarts under load, with other programs in front and beside; on the one by TCP, on the other by a Unix socket.
bookworm() { lab rehearse --no-stand-in --programs --restarts 20 --debian bookworm; }
trixie() { lab rehearse --no-stand-in --programs --unix --restarts 20 --debian trixie; }

# The same for a small service that was made hitless in ten lines, with its two units.
adopted() { adopted_on bookworm && adopted_on trixie; }
adopted_on() { lab rehearse --no-stand-in --adopted --restarts 20 --debian "$1"; }

# A real browser through restarts.
browser() {
    needs chromedriver
    lab browser --restarts 10 --debian trixie
}

# Updates and rollbacks by ssh, and instances restarted in turn. What runs the tests may be busy: hence the bound.
deploys() { deploys_on bookworm && deploys_on trixie; }
deploys_on() {
    lab deploy --as-is --updates 6 --debian "$1" && lab rolling --as-is --restarts 6 --bound 250 --debian "$1"
}

# What a restart costs clients, beside what systemd itself takes. What runs the tests may be busy: hence the bound.
delays() { delays_on bookworm && delays_on trixie; }
delays_on() { lab measure --as-is --quick --bound 2.5 --debian "$1"; }

# What a request takes, beside bare axum's.
cost() {
    needs valgrind
    cargo run --quiet --release --package proof -- cost --check
}

# What Kubernetes does to containers, played without it: a rolling update.
pods() { cargo run --quiet --release --package proof -- pods --as-is --quick; }

# Clients that do what none should, one of each kind.
attacks() { cargo run --quiet --release --package proof -- attack --quick; }

# All that can go wrong with a deploy; where that is the same at each of its steps, at every third.
faults_12() { faults_on bookworm; }
faults_13() { faults_on trixie; }
faults_on() {
    needs dpkg-shlibdeps
    lab faults --as-is --every 3 --hosts 3 --debian "$1"
}

# What can go wrong with a service that runs; what takes little time of it.
chaos_12() { lab chaos --as-is --quick --debian bookworm; }
chaos_13() { lab chaos --as-is --quick --debian trixie; }

# What clients of a load balancer notice of restarts, stops and reboots; one row of each kind.
balance_12() { lab balance --as-is --quick --debian bookworm; }
balance_13() { lab balance --as-is --quick --debian trixie; }

# `make chaos`: nothing left out, and 500 restarts before every kind of client at once.
crowd_on() {
    needs chromedriver
    lab rehearse --as-is --no-stand-in --programs --browser --restarts 500 --debian "$1"
}
siege() { cargo run --quiet --release --package proof -- attack; }
containers_12() { containers_on bookworm; }
containers_13() { containers_on trixie; }
containers_on() {
    needs podman
    lab container --as-is --debian "$1"
}
cluster() { cargo run --quiet --release --package proof -- pods --as-is; }
hurts_12() { lab chaos --as-is --debian bookworm; }
hurts_13() { lab chaos --as-is --debian trixie; }
pools_12() { lab balance --as-is --debian bookworm; }
pools_13() { lab balance --as-is --debian trixie; }
costs_12() { lab measure --as-is --debian bookworm; }
costs_13() { lab measure --as-is --debian trixie; }
updates_12() { updates_on bookworm; }
updates_13() { updates_on trixie; }
updates_on() { lab deploy --as-is --debian "$1" && lab rolling --as-is --debian "$1"; }
watched_12() { lab watched --as-is --debian bookworm; }
watched_13() { lab watched --as-is --debian trixie; }
orders_12() { orders_on bookworm; }
orders_13() { orders_on trixie; }
orders_on() {
    [ "$(id -u)" -eq 0 ] || cannot "booting a host needs root"
    needs git systemd-nspawn debootstrap ip ssh
    DEBIAN=$1 tests/template.sh orders
}
steps_12() { steps_on bookworm; }
steps_13() { steps_on trixie; }
steps_on() {
    needs dpkg-shlibdeps
    lab faults --as-is --debian "$1"
}

all() {
    # Side by side what compiles into folders of its own; the restarts have the machine to themselves.
    lane format scripts alerts lints service units manifests storm releases
    lane template postgres memory built
    wait
    lane bookworm trixie adopted browser delays attacks cost
    wait
    # They wait most of the time, also those that have three hosts side by side.
    lane faults_12
    lane faults_13
    lane pods deploys chaos_12 chaos_13 balance_12 balance_13
}

chaos() {
    lane crowd_12 crowd_13 costs_12 costs_13 updates_12 updates_13 watched_12 watched_13 siege cluster containers_12 containers_13
    wait
    # As above.
    lane hurts_12 steps_12 pools_12
    lane hurts_13 steps_13 pools_13
    lane orders_12 orders_13
}
