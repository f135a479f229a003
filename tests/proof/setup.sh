#!/bin/sh
# What the template's own targets need; tests/setup.sh reads this, and can be told proofs, fuzz and bench besides.
case $1 in
proofs)
    hosts
    wanted shellcheck shellcheck systemd-analyze systemd git git dpkg-shlibdeps dpkg-dev promtool prometheus
    # It brings the browser along.
    wanted chromedriver chromium-driver
    wanted valgrind valgrind
    ;;
fuzz) wanted c++ g++ ;;
bench) wanted wrk wrk valgrind valgrind ;;
esac
case $1 in
# A service is generated first.
rehearse | proofs)
    install_missing
    tests/template.sh setup
    ;;
esac
