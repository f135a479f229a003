#!/bin/sh
# Prepares a host for the service, whose name is $SERVICE: PostgreSQL, with a user and a database of that name. It knows the
# service's user by the Unix socket, for which it needs libnss-systemd: nobody but systemd knows the user of the unit.
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends postgresql libnss-systemd
apt-get clean
version=$(ls /etc/postgresql)
# What is rehearsed is not the disk.
echo 'fsync = off' >"/etc/postgresql/$version/main/conf.d/rehearsal.conf"
pg_ctlcluster "$version" main start
runuser --user postgres -- createuser "$SERVICE"
runuser --user postgres -- createdb --owner="$SERVICE" "$SERVICE"
pg_ctlcluster "$version" main stop
