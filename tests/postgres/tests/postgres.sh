#!/bin/sh
# A PostgreSQL for a while, on a Unix socket alone, and gone with all its data afterwards. It needs what Debian's package
# `postgresql` brings, and no root.
#
#   tests/postgres.sh COMMAND ...    runs a command with it, in which the service finds it: tests/postgres.sh make run
#   tests/postgres.sh                says in which folder its socket is, and ends with standard input
set -eu

name=$(sed -n '/^name = "\(.*\)"/ { s//\1/p; q; }' "$(dirname "$0")/../Cargo.toml")

# Debian has it where it is not found, a folder for each version.
PATH=$PATH:$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
command -v initdb >/dev/null || {
    echo "PostgreSQL is missing: apt-get install postgresql" >&2
    exit 1
}

folder=$(mktemp -d)
# It refuses to be root.
own() { "$@"; }
if [ "$(id -u)" -eq 0 ]; then
    chown postgres "$folder"
    own() { runuser --user postgres -- env "PATH=$PATH" "$@"; }
fi
end() {
    own pg_ctl stop --pgdata "$folder/data" --mode immediate >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 1' HUP INT TERM

cd "$folder"
# Nothing here outlives the machine: it need not wait for a disk.
{
    own initdb --pgdata data --username postgres --auth trust --encoding UTF8 --locale C.UTF-8 --no-sync &&
        own pg_ctl start --pgdata data --wait --log log \
            --options "-k '$folder' -c listen_addresses= -c fsync=off -c max_connections=400"
} >said 2>&1 || {
    cat said log >&2
    exit 1
}
cd - >/dev/null

if [ $# -gt 0 ]; then
    status=0
    env "$(echo "$name" | tr a-z- A-Z_)_DATABASE__URL=postgres:///postgres?host=$folder&user=postgres" "$@" || status=$?
    exit $status
fi
echo "$folder"
cat >/dev/null
