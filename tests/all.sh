#!/bin/sh
# Runs every test, or the parts that are named, and says how long each took.
#
#   tests/all.sh [PART ... | chaos]
#
# A part that cannot run here says why; where CI=true, that is a failure. Only chaos needs root, as it boots hosts; in the template
# so does more.
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

format() { cargo fmt --all --check; }

lints() { cargo clippy --workspace --all-targets --quiet -- --deny warnings; }

scripts() {
    needs shellcheck
    grep -rlxZ --exclude-dir=.git --exclude-dir=target '#!/bin/sh' . | xargs -0 shellcheck --check-sourced
}

# The service as a process under a small service manager, and from inside.
service() { cargo test --workspace --quiet --no-fail-fast; }

# systemd accepts the units as they are printed, and what `systemd-analyze security` says of the sandbox (here in
# tenths) is as promised, with and without a network.
units() {
    needs systemd-analyze
    cargo build --quiet --bin "$name" || exit
    accepts false 5 && accepts true 12 && accepts_metrics
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
accepts_metrics() {
    "$binary" unit metrics-socket >"$unit-metrics.socket"
    "$binary" unit metrics-service | sed "s|^ExecStart=[^ ]*|ExecStart=$binary|" >"$unit-metrics@.service"
    said=$(systemd-analyze verify --recursive-errors=no "$unit-metrics@.service" "$unit-metrics.socket" 2>&1)
    echo "$said"
    [ -z "$said" ]
}

# Hosts, that is Debians booted for it, and what happens to the service there.
lab() {
    [ "$(id -u)" -eq 0 ] || cannot "booting a host needs root"
    needs systemd-nspawn debootstrap ip ssh
    cargo run --quiet --release --package "$laboratory" -- "$@"
}
laboratory=lab

# `make chaos`: many restarts before every kind of client at once.
crowd_12() { crowd_on bookworm; }
crowd_13() { crowd_on trixie; }
crowd_on() { lab rehearse --no-stand-in --restarts 200 --debian "$1"; }

# All parts, in lanes: one after the other in a lane, the lanes side by side.
all() { lane format scripts lints service units; }
chaos() { lane crowd_12 crowd_13; }

# What the template has besides.
# shellcheck source=/dev/null
[ ! -e tests/proof/parts.sh ] || . tests/proof/parts.sh

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
'') all ;;
chaos) chaos ;;
*) lane "$@" ;;
esac
wait

# Whoever keeps only the end of what is said here still sees why.
for result in "$results"/*.result; do
    grep -q ' failed$' "$result" || continue
    echo
    part=$(basename "$result" .result)
    said "$part" | grep -A 2 -E 'FAILED|panicked at|error(\[|:)' | cut -c 1-300 | head -n 20
    said "$part" | tail -n 10
done
echo
cat "$results"/*.result
passed=$(cat "$results"/*.result | grep -c ' passed$')
failed=$(cat "$results"/*.result | grep -c ' failed$')
echo "all of it took $(($(date +%s) - began)) s"
others=$(cat "$results"/*.result | grep -c ' not run: ')
echo "$passed passed, $failed failed, $others not run"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
