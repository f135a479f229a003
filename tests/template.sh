#!/bin/sh
# The template: what cargo-generate makes of it builds, has no trace of the template but a stamp, is updated, and passes its
# tests once it has become a service of one's own.
#
#   tests/template.sh                      proves that
#   tests/template.sh postgres             proves it of a service with PostgreSQL
#   tests/template.sh orders               rehearses that on a host, as root: on $DEBIAN
#   tests/template.sh setup                installs cargo-generate, unless it is there
#   tests/template.sh generate DIR NAME    makes the service NAME in DIR/NAME, of the files that git would clone; what else
#                                          there is, is for cargo generate: --define database=postgres
#
# Some files in tests/postgres take the place of another, and differ from it by tests/postgres.patch, which is there so that
# neither changes without the other:
#
#   tests/template.sh carry                the other has changed: brings those in tests/postgres to the same
#   tests/template.sh record               those in tests/postgres have changed: writes the patch
#   tests/template.sh is_in_step           fails where there is something to do
set -eu
cd "$(dirname "$0")/.."
# It asks for $USER, to fill in an author that this template does not use.
export USER="${USER:-nobody}"

setup() {
    cargo generate --version >/dev/null 2>&1 && return
    echo "installing cargo-generate, which takes some minutes"
    # Its rust-version runs ahead of stable; a debug build is quicker to make and quick enough.
    cargo install cargo-generate --version 0.26.0 --locked --ignore-rust-version --no-default-features --debug --quiet
}

# What git would clone: not what else lies about in this folder.
template_of() {
    git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --create | tar --extract --directory "$1"
}

generate() {
    status=0
    template=$(mktemp -d)
    template_of "$template"
    into=$1 name=$2
    shift 2
    # Into a folder of another workspace, which it would otherwise enter the service in.
    (cd "$into" && cargo generate --no-workspace --path "$template" --name="$name" "$@") || status=$?
    rm -rf "$template"
    return $status
}

fail() {
    echo "$*" >&2
    exit 1
}

# Asks for a service of this name, of a template of which nothing but the decision about names is left.
try_name() { (cd "$work" && cargo generate --no-workspace --path "$names" --name="$1") >"$names/said" 2>&1 </dev/null; }

# The names to be refused, each behind a part of the reason.
refused() {
    for name in Bad_Name my_api 1abc 'my service' -dash a a2345678901234567890123456789012; do
        echo "a small letter first:$name"
    done
    echo "another service is deployed:my-deploy"
    echo "another service tells its metrics:my-metrics"
    for name in before failed host steps; do echo "a deploy has a file of that name:$name"; done
    for name in build fn nul self std test; do echo "cargo and Rust have that word:$name"; done
    for name in hitless layers service; do echo "a crate of that name:$name"; done
    for name in backup docker mail postgres www-data; do echo "a user or a group of that name:$name"; done
    for name in containerd cron getty nginx ssh; do echo "replace the unit of that name:$name"; done
    for name in apt credentials dpkg private; do echo "which are Debian's:$name"; done
    for name in dbus-api systemd-api systemd-journald; do echo "one of systemd's own units:$name"; done
    for name in cargo http kubernetes no rust ssh-auth; do echo ", which others set:$name"; done
    # Whatever the service itself knows systemd to set: NOTIFY_SOCKET is notify's, TRIGGER_TIMER_USEC also trigger-timer's.
    sed -n '/^const SYSTEMD/,/;$/p' src/hitless/layers/src/environment.rs | grep -oE '[A-Z]+(_[A-Z]+)+' | tr A-Z_ a-z- |
        while read -r name; do
            while [ "${name%-*}" != "$name" ]; do
                name=${name%-*}
                echo ":$name"
            done
        done
    # Whatever crates the service, its tests and the laboratory are made of; the template's own name is gone by then, and http
    # is above.
    cargo metadata --quiet --no-deps --format-version 1 | grep -oE '"name":"[^"]*","source":' | cut -d '"' -f 4 |
        sed 's/_/-/g; /^hitless-template$/d; /^http$/d; s/^/a crate of that name:/'
    # Whatever users and groups every Debian has, where this is one.
    cat /usr/share/base-passwd/*.master 2>/dev/null | grep -oE '^[a-z][a-z0-9-]+' | sed 's/^/:/'
}

# Each refusal says why, and recommends a name that is taken.
refuses_names() {
    names=$(mktemp -d)
    mkdir "$names/tests"
    cp cargo-generate.toml "$names"
    cp tests/template-name.rhai tests/postgres.rhai "$names/tests"
    refused | sort -u >"$names/refused"
    while IFS=: read -r why name; do
        if try_name "$name"; then fail "\"$name\" was accepted"; fi
        grep -q "\"$name\" cannot name a service: .*$why" "$names/said" || fail "\"$name\": $(cat "$names/said")"
        grep -oE 'For example: [a-z0-9-]+' "$names/said" | cut -d ' ' -f 3
    done <"$names/refused" >"$names/recommended"
    [ "$(wc -l <"$names/recommended")" -eq "$(wc -l <"$names/refused")" ] || fail "a refusal recommends nothing"
    [ -z "$(ls "$work")" ] || fail "a refused name left something behind: $(ls "$work")"

    # The longest and the shortest, and some that only look like those that are refused.
    printf '%s\n' a234567890123456789012345678901 ab mailer notifier orders service-desk sshd2 state-machine |
        sort -u - "$names/recommended" >"$names/accepted"
    while read -r name; do
        try_name "$name" || fail "\"$name\" was refused: $(cat "$names/said")"
    done <"$names/accepted"
    rm -rf "$names" "${work:?}"/*
}

# The README's command, typed in a folder of somebody's workspace, leaves that as it is.
generates() {
    mkdir -p "$work/theirs/hitless" "$work/theirs/one/src"
    template_of "$work/theirs/hitless"
    touch "$work/theirs/one/src/lib.rs"
    printf '[package]\nname = "one"\n' >"$work/theirs/one/Cargo.toml"
    # By a pattern it is theirs to exclude the service, as they are told.
    for members in 'members = ["one"]' 'members = ["o*", "my*"]
exclude = ["my-api"]'; do
        printf '[workspace]\nresolver = "3"\n%s\n' "$members" >"$work/theirs/Cargo.toml"
        cp "$work/theirs/Cargo.toml" "$work/before"
        # Nobody is asked for anything who has not been asked for the name.
        (cd "$work/theirs" && sh -ec "$(grep '^cargo generate ' hitless/README.md)") >"$work/said" 2>&1 </dev/null || fail "$(cat "$work/said")"
        grep -q 'add my-api to its "exclude"' "$work/said" || fail "it is not told that it is within a workspace"
        cmp "$work/before" "$work/theirs/Cargo.toml" || fail "generating a service changed the workspace around it"
        for folder in . one my-api; do
            cargo metadata --quiet --format-version 1 --manifest-path "$work/theirs/$folder/Cargo.toml" >/dev/null
        done
        rm -rf "$work/theirs/my-api"
    done
    rm -rf "$work/theirs"

    generate "$work" my-api 2>&1
}

# A checkout by a git that ends lines as Windows does still has scripts that run; in the template and in the service.
ends_lines() {
    for folder in "$work/template" "$work/my-api"; do
        [ -d "$folder" ] || { mkdir "$folder" && template_of "$folder"; }
        git -c init.defaultBranch=main init --quiet "$folder"
        git -C "$folder" add --all
        git -C "$folder" -c user.name=nobody -c user.email=nobody@localhost commit --quiet --message "The first"
        git clone --quiet --config core.autocrlf=true --config core.eol=crlf "$folder" "$work/clone"
        diff --recursive --exclude=.git "$folder" "$work/clone" || fail "a clone is not what was committed"
        rm -rf "$work/clone" "$folder/.git"
    done
    rm -rf "$work/template"
}

has_no_trace() {
    cd "$work/my-api"
    for file in .ci .github/workflows/template.yml LICENSE-APACHE LICENSE-MIT README.md.liquid cargo-generate.toml src/hitless/examples \
        src/hitless/layers/tests src/hitless/tests tests/bad tests/dashboard.svg tests/fuzz tests/postgres tests/postgres.patch \
        tests/postgres.rhai tests/proof tests/restart.svg \
        tests/template-name.rhai tests/template.sh tests/update.sh; do
        [ ! -e "$file" ] || fail "$file is the template's own"
    done
    if grep -rniE 'cargo.generate|project-name|\{%' . --exclude-dir=.git; then fail "traces of the template"; fi
    if grep -rniE 'postgres|sqlx|migration' .; then fail "a database that nobody has asked for"; fi
    # src/hitless is a crate, and hosts of the laboratory have the name in theirs; nothing else has.
    if grep -rnE '(etc|opt|lib|run)/hitless([^-]|$)|hitless\.(service|socket)|HITLESS_|"hitless"|hitless-template' . \
        --exclude-dir=.git --exclude=Cargo.lock | grep -v '^./src/hitless/Cargo.toml:.*:name = "hitless"$'; then
        fail "the template's name"
    fi
    # shellcheck disable=SC2016 # this is GitHub's syntax
    grep -q '\${{' .github/workflows/ci.yml || fail "the workflow's own braces are gone"
    [ -x deploy/push ] || fail "scripts are not executable"
    trace=$(grep hitless Cargo.toml | grep -v src/hitless)
    [ "$trace" = "[package.metadata.hitless]" ] || fail "more than a stamp and a crate in Cargo.toml: $trace"
    cd - >/dev/null
}

# Lines of the Rust that is found in some places.
lines() { find "$@" -name '*.rs' -exec cat {} + | wc -l; }

# An owner inherits no more than this; what of it is theirs to read are the service and its tests.
is_small() {
    cd "$work/my-api"
    files=$(find . -type f ! -path './.git/*' | wc -l)
    all=$(lines .)
    own=$(($(lines src tests/service) - $(lines src/hitless)))
    cd - >/dev/null
    echo "a generated service: $files files, $all lines of Rust, $own of them its owner's to read"
    if [ "$files" -gt 118 ] || [ "$all" -gt 14050 ] || [ "$own" -gt 1400 ]; then fail "that is too much"; fi
}

# The version that is stamped into what is generated, and those of the crates in it, are the template's.
is_stamped() {
    first_version() { sed -n '/^version = "\(.*\)"/ { s//\1/p; q; }' "$1"; }
    version=$(first_version Cargo.toml)
    stamp=$(sed -n '/^\[package.metadata.hitless\]/,/^version/ s/^version = "\(.*\)"/\1/p' "$work/my-api/Cargo.toml")
    [ "$stamp" = "$version" ] || fail "the stamp says $stamp, the template is $version"
    for crate in hitless hitless/layers; do
        its=$(first_version "$work/my-api/src/$crate/Cargo.toml")
        [ "$its" = "$version" ] || fail "$crate is $its, the template is $version"
    done
}

# The first build mends the lock file, which still had the template's name, and what the proofs need: nothing in it is new.
builds() {
    locked() { grep -A 1 '^name = ' "$1" | paste -d ' ' - - - | grep -v '^name = "\(hitless-template\|my-api\)"' | sort -u; }
    locked Cargo.lock >"$work/before"
    cd "$work/my-api"
    cargo build --quiet --workspace --all-targets
    cargo build --quiet --workspace --all-targets --all-features --locked
    locked Cargo.lock | comm -13 "$work/before" - >"$work/new"
    [ ! -s "$work/new" ] || fail "the lock file changed: $(cat "$work/new")"
    [ "$("$CARGO_TARGET_DIR/debug/my-api" unit socket | grep ^FileDescriptorName)" = "FileDescriptorName=http" ]
    make check
    cd - >/dev/null
}

# The examples are taken out as the README tells how: nothing is left over that would be noticed.
takes_examples_out() {
    cd "$work/my-api"
    rm src/routes/ping.rs src/routes/echo.rs
    sed -i '/^pub mod echo;/d; /^pub mod ping;/d' src/routes/mod.rs
    sed -i 's/{echo, health, ping}/health/; s/{get, post}/get/; /"\/ping"/d; /"\/echo"/d' src/app.rs
    sed -i '/serde(with = "humantime_serde")/{N;/pub ping_delay: /d}' src/config.rs
    sed -i '/^# How long \/ping takes/d; /^ping_delay = /d' config/default.toml
    sed -i '/^\[settings\]/,/^$/d; /^# Takes seconds/,$d' tests/lab/traffic.toml
    example=$(grep -n 'async fn ping_answers' tests/service/own_routes.rs | cut -d : -f 1)
    sed -i "$((example - 2)),\$d; /^use tokio::/d" tests/service/own_routes.rs
    cargo fmt --all
    make check
    cd - >/dev/null
}

# A service of one's own has a route that takes JSON, a state that is waited for, a setting, a line in the log before it serves,
# connections of its own. It passes its tests, and is rehearsed.
makes_it_ones_own() {
    cd "$work/my-api"
    echo 'pub mod orders;' >>src/routes/mod.rs
    sed -i 's/routes::health;/routes::{health, orders};/; s/routing::get;/routing::{get, post};/
        s/^    pub readiness: .*/&\n    pub orders: orders::Orders,/
        s/Ok(Self { config,/Ok(Self { orders: orders::Orders::open(\&config.journal).await?, config,/
        s/\.route("\/livez"/.route("\/orders", post(orders::take))&/' src/app.rs
    sed -i 's/^    pub reuse_port: .*/&\n    pub journal: String,/' src/config.rs
    sed -i 's/^reuse_port = .*/&\njournal = ""/; s/^outbound = false/outbound = true/' config/default.toml
    cat >src/routes/orders.rs <<'END'
//! `POST /orders`: takes each order once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use layers::problem::Problem;

/// The orders so far.
#[derive(Clone, Debug, Default)]
pub struct Orders(Arc<Mutex<BTreeSet<String>>>);

impl Orders {
    /// Opens the journal that they are written to.
    ///
    /// # Errors
    /// When it is not that of this service.
    pub async fn open(journal: &str) -> Result<Self, std::io::Error> {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        tracing::info!("{journal} is open");
        if journal == "orders" { Ok(Self::default()) } else { Err(std::io::Error::other("no journal of orders")) }
    }
}

/// An order.
#[derive(Deserialize, Serialize)]
pub struct Order {
    order: String,
}

/// Takes an order.
pub async fn take(
    State(Orders(orders)): State<Orders>,
    headers: HeaderMap,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<Order>), Problem> {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let new = orders.lock().is_ok_and(|mut orders| orders.insert(order.order.clone()));
    if key != Some(&order.order) || !new {
        return Err(Problem::new(StatusCode::CONFLICT, "no order, or one that was taken already"));
    }
    Ok((StatusCode::CREATED, Json(order)))
}
END
    cat >>tests/lab/traffic.toml <<'END'

[settings]
journal = "orders"

[[fast]]
method = "POST"
path = "/orders"
headers = { Content-Type = "application/json", Idempotency-Key = "{id}" }
send = '{"order":"{id}"}'
status = 201
body = '{"order":"{id}"}'
END
    cat >>tests/service/own_routes.rs <<'END'
#[tokio::test]
async fn what_is_no_order_is_refused() {
    let service = start("").await;
    let no_order = Ask::echo("/orders", 415, b"");
    assert_eq!(client(&service).await.exchange(&Ask { body: None, ..no_order }).await, Ok(Stays::Open));
}
END
    cargo fmt --all
    make check
    cargo test --quiet --workspace
    cd - >/dev/null
    # In the template's own folder, where what they have in common is built anyway.
    cargo build --quiet --release --package lab --target-dir "$built"
    (cd "$work/my-api" && CARGO_TARGET_DIR=$built "$built/release/lab" rehearse --stand-in --restarts 3)
}

# The README's first commit holds all of it: nothing is left over, so that the first release is called after it.
is_committed() {
    git init --quiet "$work/my-api"
    git -C "$work/my-api" config user.name nobody
    git -C "$work/my-api" config user.email nobody@localhost
    (cd "$work" && sh -ec "$(grep '^git -C ' "$OLDPWD/README.md")") >/dev/null
    [ -z "$(git -C "$work/my-api" status --porcelain)" ] || fail "the first commit left something out"
    git -C "$work/my-api" ls-files --error-unmatch Cargo.lock .gitattributes .github/workflows/ci.yml >/dev/null
}

# What is appended to files that are an owner's, and what else an owner does.
theirs="Makefile README.md config/default.toml deploy/service.unit src/app.rs src/routes/mod.rs
    tests/lab/traffic.toml tests/service/own_routes.rs"
owns() {
    # Something of the machinery as well, where it is by then.
    for file in $theirs "$(cd "$1" && ls src/hitless/past.rs 2>/dev/null || echo "$moves")"; do
        case $file in
        *.rs) echo "// The owner's." ;;
        *) printf "\n# The owner's.\n" ;;
        esac >>"$1/$file"
    done
    sed -i '0,/^version = .*/s//version = "7.0.0"/; s/^axum = .*/&\nthe-owners = "1"/' "$1/Cargo.toml"
    rm "$1/src/routes/echo.rs"
    mkdir -p "$1/deploy/past"
    echo "// The owner's." | tee "$1/src/routes/orders.rs" "$1/tests/service/orders.rs" >"$1/deploy/past/orders"
}

in_git() { git -c user.name=nobody -c user.email=nobody@localhost -c init.defaultBranch=main -c commit.gpgSign=false -C "$@"; }
commits() { in_git "$1" add --all && in_git "$1" commit --quiet --message "$2"; }

# A template with a past, whatever git knows of this one's: its last commit is what is here, before that files of the machinery
# were elsewhere or were not there yet, and lines of an owner's files were others.
makes_a_past() {
    past=$work/past
    mkdir "$past"
    template_of "$past"
    in_git "$past" init --quiet
    # Of the machinery one file moves, and a folder; one is new, another one goes.
    mv "$past/deploy/debian" "$past/deploy/past"
    find src/hitless -name tests -prune -o -name '*.rs' -size +5k -print | sort >"$work/machinery"
    moves=$(sed -n 1p "$work/machinery")
    new=$(sed -n 2p "$work/machinery")
    sed '20s/$/ The past./' "$past/$moves" >"$past/src/hitless/past.rs"
    echo "// The past." >"$past/src/hitless/gone.rs"
    rm "$past/$moves" "$past/$new"
    for file in $theirs README.md.liquid; do sed -i '1s/$/ The past./' "$past/$file"; done
    sed -i '/^\[package.metadata.hitless\]/,/^version/s/^version = .*/version = "0.0.1"/; s/^edition = .*/& # The past./' "$past/Cargo.toml"
    echo "# The past." >>"$past/Cargo.lock"
    # Who has taken out an example is not of a time when there was none.
    mv "$past/src/routes/echo.rs" "$work/example"
    commits "$past" "Long past"
    mv "$work/example" "$past/src/routes/echo.rs"
    commits "$past" "The past"
    then=$(in_git "$past" rev-parse HEAD)
    # As any other, but for what is rendered: a service of the past is none of this.
    sed -i 's/^edition = .*/&, and later./' "$past/Cargo.toml"
    commits "$past" "Hardly anything"
    git -C "$past" rm -r --quiet .
    template_of "$past"
    commits "$past" "What is here"
}

# A service of a commit of that template, at a place in a repository of its owner's: serves_since COMMIT PLACE.
serves_since() {
    owners=$work/owners
    service=$owners/$2
    rm -rf "$owners" "$work/then"
    mkdir -p "$service" "$work/then"
    git -C "$past" archive "$1" | tar --extract --directory "$work/then"
    cargo generate --no-workspace --path "$work/then" --name my-api --destination "$work/then" >/dev/null 2>&1
    rm -rf "$work/then/my-api/.git"
    cp -R "$work/then/my-api/." "$service"
    in_git "$owners" init --quiet
    commits "$owners" "The first"
}

updates_it() { make --no-print-directory -C "$service" update FROM="$past" "$@" >"$work/said" 2>&1; }
# It fails, says why, and has changed nothing: refuses WHY [SETTING ...].
refuses() {
    why=$1
    shift
    before=$(in_git "$owners" status --porcelain --ignored && in_git "$owners" rev-parse HEAD)
    if updates_it "$@"; then fail "this update did not fail: $why"; fi
    grep -q "$why" "$work/said" || fail "it should say $why: $(cat "$work/said")"
    [ "$(in_git "$owners" status --porcelain --ignored && in_git "$owners" rev-parse HEAD)" = "$before" ] || fail "it changed something: $why"
}
is_up_to_date() {
    before=$(in_git "$owners" rev-parse HEAD)
    if ! updates_it "$@" || ! grep -q 'up to date' "$work/said"; then fail "it is up to date: $(cat "$work/said")"; fi
    [ "$(in_git "$owners" status --porcelain)$(in_git "$owners" rev-parse HEAD)" = "$before" ] || fail "it changed something"
}

# A service of the past is updated: it is what it would be, had its owner done the same with one that is generated now.
updates() {
    makes_a_past
    serves_since HEAD .
    is_up_to_date CHECK=1
    [ ! -e "$service/tests/update.sh" ] || fail "tests/update.sh is the template's own"
    owns "$service"
    fresh=$work/fresh
    cp -R "$service" "$fresh"

    for place in . services/one; do
        serves_since "$then" "$place"
        owns "$service"
        commits "$owners" "The owner's"
        updates_it || fail "$(cat "$work/said")"
        grep -q "^## $(sed -n '/^version = "\(.*\)"/ { s//\1/p; q; }' Cargo.toml)" "$work/said" || fail "the changelog: $(cat "$work/said")"
        in_git "$service" diff --quiet || fail "something is not ready to be committed"
        commits "$owners" "An update"
        [ "$(sed -n 's/^commit = "\(.*\)"/\1/p' "$service/Cargo.toml")" = "$(in_git "$past" rev-parse HEAD)" ] || fail "no stamp"
        sed -i '/^commit = /d' "$service/Cargo.toml"
        diff --recursive --exclude=.git --exclude=Cargo.lock "$fresh" "$service" || fail "this is not what an update should make of it"
        tail -n 1 "$service/Cargo.lock" | grep -q 'The past' || fail "the lock file is not the service's own"
        in_git "$owners" checkout --quiet .
        is_up_to_date
    done
    echo >>"$past/README.md"
    echo 'abort("No service has this name.");' >"$past/tests/template-name.rhai"
    commits "$past" "What no service gets"
    is_up_to_date

    # Nothing that is not committed is at risk.
    serves_since "$then" .
    owns "$service"
    commits "$owners" "The owner's"
    refuses "is hitless 0.0.1 .*, and there is " CHECK=1
    echo >>"$service/src/app.rs"
    refuses "something is changed"
    in_git "$owners" checkout --quiet .
    touch "$service/$new"
    refuses "overwrite what is not committed: .*$new"
    # Nor what git would take for worthless.
    echo '*.rs' >"$owners/.git/info/exclude"
    refuses "overwrite what is not committed: .*$new"
    rm "$service/$new" "$owners/.git/info/exclude"

    # Where both have changed a line, the owner decides; and gets all else.
    sed -i "1s/.*/# The owner's line./" "$service/config/default.toml"
    commits "$owners" "A line that both have changed"
    if updates_it; then fail "there is no conflict"; fi
    [ "$(in_git "$owners" diff --name-only --diff-filter=U)" = config/default.toml ] || fail "$(cat "$work/said")"
    grep -q '^CONFLICT .*config/default.toml' "$work/said" || fail "it does not say what conflicts: $(cat "$work/said")"
    [ "$(grep -cE '^(<<<<<<< HEAD|# The owner.s line.|=======|>>>>>>> .* \(Update to hitless .*)$' "$service/config/default.toml")" -eq 4 ] ||
        fail "these are not git's marks: $(head "$service/config/default.toml")"
    cmp "$service/$new" "$new" || fail "a conflict elsewhere keeps the machinery from being updated"
    in_git "$owners" reset --quiet --hard
    [ -z "$(in_git "$owners" status --porcelain)" ] || fail "git reset --hard does not take it back"

    # What it was generated from is not guessed.
    git clone --quiet --depth 1 "file://$past" "$work/shallow"
    refuses "history is not all there" FROM="$work/shallow"
    sed -i '/^\[package.metadata.hitless\]/,/^version/s/^version = .*/version = "0.0.0"/' "$service/Cargo.toml"
    commits "$owners" "Another stamp"
    refuses "its stamp says 0.0.0"
    updates_it BASE="$then" CHECK=1 || grep -q "is hitless 0.0.1" "$work/said" || fail "BASE= is not heard: $(cat "$work/said")"
    sed -i 's/^version = "0.0.0"/&\ncommit = "0123456789"/' "$service/Cargo.toml"
    commits "$owners" "A commit that there is not"
    refuses "names the commit 0123456789"
    sed -i '/^\[package.metadata.hitless\]/,/^commit/d' "$service/Cargo.toml"
    commits "$owners" "No stamp"
    refuses "is not generated from this template"
    # Of a past that is not the template's.
    serves_since "$then" .
    rm -rf "$owners/.git"
    find "$service" -name '*.rs' -exec sed -i '$s/$/ \/\/ Another./' {} +
    in_git "$owners" init --quiet
    commits "$owners" "A beginning of its own"
    refuses "the nearest commit, 0.0.1 .*, has .* files that both have"
    rm -rf "$past" "$owners" "$fresh" "$work/then" "$work/shallow"
}

# The files of a service with PostgreSQL that take the place of another.
twofold() {
    (cd tests/postgres && find . -type f) | sort | while read -r file; do
        [ ! -e "$file" ] || echo "${file#./}"
    done
}

# By what they differ.
difference() {
    twofold | while read -r file; do
        diff -u --label "$file" --label "$file" "$file" "tests/postgres/$file" || [ $? -eq 1 ]
    done
}

is_in_step() {
    difference | cmp -s - tests/postgres.patch ||
        fail "tests/postgres is not in step with what it takes the place of: tests/template.sh carry, or record"
}

carry() {
    [ -z "$(git status --porcelain tests/postgres)" ] || fail "in tests/postgres something is changed: commit that first"
    work=$(mktemp -d)
    # What the others were.
    cp -R tests/postgres/. "$work"
    patch --quiet --strip=0 --reverse --directory="$work" <tests/postgres.patch
    conflicts=$(twofold | while read -r file; do
        git merge-file "tests/postgres/$file" "$work/$file" "$file" || echo "tests/postgres/$file"
    done)
    rm -rf "$work"
    [ -z "$conflicts" ] || fail "mend these, then tests/template.sh record:
$conflicts"
    record
}

record() { difference >tests/postgres.patch; }

# With PostgreSQL there is all that belongs to it, and it is stamped so.
generates_with_postgres() {
    generate "$work" my-api --silent --define database=postgres 2>&1
    (cd tests/postgres && find . -type f) | while read -r file; do
        [ "$file" = ./Cargo.toml ] || cmp "tests/postgres/$file" "$work/my-api/$file" || fail "$file is missing in tests/postgres.rhai"
    done
    [ ! -e "$work/my-api/tests/postgres" ] || fail "something of tests/postgres is left over"
    if generate "$work" other --define database=mysql >"$work/said" 2>&1; then fail "there is no such database"; fi
    grep -q 'is no database that a service can have' "$work/said" || fail "$(cat "$work/said")"
    rm -rf "$work/other"
}

# An update knows what was chosen.
updates_with_postgres() {
    past=$work/past
    owners=$work/owners
    service=$owners
    mkdir "$past" "$owners"
    template_of "$past"
    in_git "$past" init --quiet
    for file in src/hitless/layers/src/strict.rs tests/postgres/src/outbox.rs; do sed -i '1s/$/ The past./' "$past/$file"; done
    commits "$past" "The past"
    cargo generate --no-workspace --vcs none --path "$past" --name my-api --define database=postgres --destination "$owners" --init \
        >/dev/null 2>&1
    in_git "$owners" init --quiet
    commits "$owners" "The first"
    is_up_to_date
    for file in src/hitless/layers/src/strict.rs tests/postgres/src/outbox.rs; do sed -i '1s/ The past\.$//' "$past/$file"; done
    commits "$past" "What is here"
    refuses "there is " CHECK=1
    updates_it || fail "$(cat "$work/said")"
    sed -i '/^commit = /d' "$owners/Cargo.toml"
    diff --recursive --exclude=.git --exclude=Cargo.lock "$work/my-api" "$owners" || fail "this is not what an update should make of it"
    rm -rf "$past" "$owners"
}

# It passes its checks and tests, on PostgreSQL itself.
works_with_postgres() {
    cd "$work/my-api"
    tests/setup.sh test
    make check
    cargo test --quiet
    cd - >/dev/null
}

# Its orders are what clients were told, through restarts, and whatever else goes wrong.
keeps_its_orders() {
    make -C "$work/my-api" rehearse RESTARTS=50 DEBIAN="${DEBIAN-bookworm}" REHEARSAL=--no-stand-in
}

prove() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    # The crates that it needs are built once, however often this runs.
    built=${CARGO_TARGET_DIR:-$PWD/target}
    export CARGO_TARGET_DIR="$built/template"
    for step; do
        echo "template: $step"
        $step
    done
}

case ${1-prove} in
setup) setup ;;
generate) setup && shift && generate "$@" ;;
prove)
    prove setup refuses_names generates ends_lines has_no_trace is_stamped is_small updates builds is_committed \
        takes_examples_out makes_it_ones_own
    ;;
postgres) prove setup generates_with_postgres updates_with_postgres works_with_postgres ;;
orders) prove setup generates_with_postgres keeps_its_orders ;;
carry | record | is_in_step) "$1" ;;
*) fail "template.sh: see its head" ;;
esac
