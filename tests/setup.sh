#!/bin/sh
# Installs what `make rehearse` and `make test` need on a Debian machine, where it may (as root), and else says what is
# missing. Silent and quick when all is there.
#
#   tests/setup.sh rehearse|test
set -eu
cd "$(dirname "$0")/.."

# Names the packages in which the commands that are missing come: wanted COMMAND PACKAGE ...
wanted() {
    while [ $# -gt 0 ]; do
        command -v "$1" >/dev/null || missing="$missing $2"
        shift 2
    done
}

# Installs them, or says so. What the work cannot go on without it will ask for itself.
install_missing() {
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "installing$missing"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update --quiet=2
        # shellcheck disable=SC2086 # several packages
        apt-get install --quiet=2 --yes --no-install-recommends $missing >/dev/null
    else
        echo "missing, and for root to install: apt-get install$missing" >&2
    fi
    missing=
}

command -v cargo >/dev/null || {
    echo "missing: Rust, see https://rustup.rs" >&2
    exit 1
}

missing=
wanted cc build-essential
# What boots a Debian of its own, makes a network for it, and deploys there.
hosts() {
    wanted systemd-nspawn systemd-container debootstrap debootstrap ip iproute2 ssh openssh-client
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
}
case $1 in
rehearse) hosts ;;
test) wanted shellcheck shellcheck systemd-analyze systemd ;;
esac
# What the template needs besides.
# shellcheck source=/dev/null
[ ! -e tests/proof/setup.sh ] || . tests/proof/setup.sh
install_missing

# Nothing is built without a linker; the rest says itself what it lacks.
command -v cc >/dev/null || exit 1
