#!/bin/sh
# Runs every test, or the parts that are named, and says how long each took.
#
#   tests/all.sh [PART ... | chaos]
#
# A part that cannot run here says why; where CI=true, that is a failure.
set -u
cd "$(dirname "$0")/.." || exit

name=$(sed -n '/^name = "\(.*\)"/ { s//\1/p; q; }' Cargo.toml)

# Ends a part that cannot run here: needs COMMAND ...
needs() {
    for command; do
        command -v "$command" >/dev/null || cannot "$command is missing (tests/setup.sh test)"
    done
}
cannot() {
    echo "cannot run here: $*"
    exit 77
}

# The crate's own proofs are the template's: what is generated has none of them, and cargo does not format them.
proofs='' adopted=''
[ ! -d src/hitless/tests ] || proofs="--features hitless/proofs" adopted=adopted

format() {
    cargo fmt --all --check || exit
    [ -z "$proofs" ] || rustfmt --edition 2024 --check src/hitless/tests/unit/*.rs
}

# shellcheck disable=SC2086 # two words, or none
lints() { cargo clippy --workspace --all-targets $proofs --quiet -- --deny warnings; }

scripts() {
    needs shellcheck
    grep -rlxZ --exclude-dir=.git --exclude-dir=target '#!/bin/sh' . | xargs -0 shellcheck --check-sourced
}

# The service in-process, and as a process under a small service manager; the laboratory's own tests.
# shellcheck disable=SC2086 # as above
service() { cargo test --workspace $proofs --quiet --no-fail-fast; }

# systemd accepts the units as they are printed, and what `systemd-analyze security` says of the sandbox (here in
# tenths) is as promised, with and without a network.
units() {
    needs systemd-analyze
    cargo build --quiet --bin "$name" || exit
    accepts false 5 && accepts true 12
}
accepts() {
    binary=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/$name
    unit=$results/$name
    "$binary" unit socket >"$unit.socket"
    # systemd wants to see the binary that a unit starts.
    env "$(echo "$name" | tr a-z- A-Z_)_UNIT__OUTBOUND=$1" "$binary" unit service |
        sed "s|^ExecStart=[^ ]*|ExecStart=$binary|" >"$unit.service"
    said=$(systemd-analyze verify --recursive-errors=no "$unit.service" "$unit.socket" 2>&1)
    echo "$said"
    [ -z "$said" ] && systemd-analyze security --offline=true --no-pager --threshold="$2" "$unit.service"
}

# The machinery's own files, in memory: random connections, and orders of threads. In its folder, where its build is
# configured.
memory() {
    cd tests/fuzz || exit
    cargo fmt --all --check &&
        cargo clippy --quiet --workspace --all-targets --features shuttle -- --deny warnings &&
        cargo test --quiet && cargo test --quiet --features shuttle --test gate
}

# Clients that say and do anything, while the service is restarted.
storm() { cargo run --quiet --package lab -- storm; }

template() { needs git && tests/template.sh; }

# Hosts, that is Debians booted for it, and what happens to the service there.
lab() {
    [ "$(id -u)" -eq 0 ] || cannot "booting a host needs root"
    needs systemd-nspawn debootstrap ip ssh git
    cargo run --quiet --release --package lab -- "$@"
}

# Twenty restarts under load, with other programs in front and beside; on the one by TCP, on the other by a Unix socket.
bookworm() { lab rehearse --no-stand-in --programs --restarts 20 --debian bookworm; }
trixie() { lab rehearse --no-stand-in --programs --unix --restarts 20 --debian trixie; }

# The same for a small service that was made hitless in ten lines, with its two units.
adopted() { lab rehearse --no-stand-in --adopted --restarts 20 --debian bookworm; }

# A real browser through restarts.
browser() {
    needs chromedriver
    lab browser --as-is --restarts 10 --debian trixie
}

# Updates and rollbacks by ssh, and instances restarted in turn. What runs the tests may be busy: hence the bound.
deploys() { deploys_on bookworm && deploys_on trixie; }
deploys_on() {
    lab deploy --as-is --updates 6 --debian "$1" && lab rolling --as-is --restarts 6 --bound 250 --debian "$1"
}

# What a restart costs clients, beside what systemd itself takes. What runs the tests may be busy: hence the bound.
delays() { delays_on bookworm && delays_on trixie; }
delays_on() { lab measure --as-is --quick --bound 2.5 --debian "$1"; }

# Clients that do what none should, one of each kind.
attacks() { cargo run --quiet --release --package lab -- attack --quick; }

# All that can go wrong with a deploy; where that is the same at each of its steps, at every third.
faults_12() { faults_on bookworm; }
faults_13() { faults_on trixie; }
faults_on() {
    needs dpkg-shlibdeps
    lab faults --as-is --every 3 --debian "$1"
}

# What can go wrong with a service that runs; what takes little time of it.
chaos_12() { lab chaos --as-is --quick --debian bookworm; }
chaos_13() { lab chaos --as-is --quick --debian trixie; }

# What clients of a load balancer notice of restarts, stops and reboots; one row of each kind.
balance_12() { lab balance --as-is --quick --debian bookworm; }
balance_13() { lab balance --as-is --quick --debian trixie; }

# `make chaos`: nothing left out, and 500 restarts before every kind of client at once.
crowd_12() { crowd_on bookworm; }
crowd_13() { crowd_on trixie; }
crowd_on() {
    needs chromedriver
    lab rehearse --as-is --no-stand-in --programs --browser --restarts 500 --debian "$1"
}
siege() { cargo run --quiet --release --package lab -- attack; }
hurts_12() { lab chaos --as-is --debian bookworm; }
hurts_13() { lab chaos --as-is --debian trixie; }
pools_12() { lab balance --as-is --debian bookworm; }
pools_13() { lab balance --as-is --debian trixie; }
costs_12() { lab measure --as-is --debian bookworm; }
costs_13() { lab measure --as-is --debian trixie; }
updates_12() { updates_on bookworm; }
updates_13() { updates_on trixie; }
updates_on() { lab deploy --as-is --debian "$1" && lab rolling --as-is --debian "$1"; }
steps_12() { steps_on bookworm; }
steps_13() { steps_on trixie; }
steps_on() {
    needs dpkg-shlibdeps
    lab faults --as-is --debian "$1"
}

# What a part said, each line behind the part's name.
said() { sed "s/^/$1: /" "$results/$1.log"; }

# Runs parts one after the other, each to the end whatever becomes of the others.
run() {
    for part; do
        began=$(date +%s)
        ("$part") >"$results/$part.log" 2>&1
        status=$?
        took=$(($(date +%s) - began))
        case $status in
        0) verdict=passed ;;
        77) verdict="not run: $(tail -n 1 "$results/$part.log")" && [ "${CI-}" != true ] || verdict=failed ;;
        *) verdict=failed ;;
        esac
        [ "$verdict" != failed ] || said "$part"
        printf '%-10s %4d s  %s\n' "$part" "$took" "$verdict" | tee "$results/$part.result"
    done
}

if [ -n "${RESULTS-}" ]; then
    results=$RESULTS
    # A part may run this script for a service that it generates: that has results of its own.
    unset RESULTS
    run "$@"
    exit
fi

mkdir -p target/tests
results=$(mktemp -d "$PWD/target/tests/XXXXXX")
echo "what each part says is in $results"
lanes=
# Each lane leads a process group, so that it ends with all that it started.
# shellcheck disable=SC2086 # several lanes
trap 'kill -- $lanes 2>/dev/null; exit 1' HUP INT TERM
lane() {
    RESULTS=$results setsid tests/all.sh "$@" &
    lanes="$lanes -$!"
}

began=$(date +%s)
case "$*" in
'')
    # Side by side what compiles into folders of its own; the restarts have the machine to themselves.
    lane format scripts lints service units storm memory
    [ ! -x tests/template.sh ] || lane template
    wait
    # shellcheck disable=SC2086 # one word, or none
    lane bookworm trixie $adopted browser deploys delays attacks
    wait
    # They wait most of the time.
    lane faults_12 chaos_12 balance_12
    lane faults_13 chaos_13 balance_13
    wait
    ;;
chaos)
    lane crowd_12 crowd_13 costs_12 costs_13 updates_12 updates_13 siege
    wait
    # As above.
    lane hurts_12 steps_12 pools_12
    lane hurts_13 steps_13 pools_13
    wait
    ;;
*)
    lane "$@"
    wait
    ;;
esac

# Whoever keeps only the end of what is said here still sees why.
for result in "$results"/*.result; do
    grep -q ' failed$' "$result" || continue
    echo
    said "$(basename "$result" .result)" | tail -n 40
done
echo
cat "$results"/*.result
passed=$(cat "$results"/*.result | grep -c ' passed$')
failed=$(cat "$results"/*.result | grep -c ' failed$')
echo "all of it took $(($(date +%s) - began)) s"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
