#!/bin/sh
# What the template's own targets need; tests/setup.sh reads this, and can be told proofs, fuzz and bench besides.
case $1 in
proofs)
    hosts
    wanted shellcheck shellcheck systemd-analyze systemd git git dpkg-shlibdeps dpkg-dev
    # It brings the browser along.
    wanted chromedriver chromium-driver
    wanted valgrind valgrind
    wanted pip3 python3-pip
    ;;
containers) wanted podman podman ;;
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
# Kubernetes' schemas, and what reads them.
case $1 in
proofs)
    if [ ! -d target/kubernetes ] && command -v pip3 >/dev/null; then
        pip3 install --quiet --disable-pip-version-check --root-user-action=ignore --target target/kubernetes.unfinished \
            kubernetes-validate==1.37.0
        mv target/kubernetes.unfinished target/kubernetes
    fi
    ;;
esac
# Prometheus for hosts, and what checks metrics and alerts: installed, its package would have a server run here.
case $1 in
proofs)
    if [ ! -x target/promtool/usr/bin/promtool ] && command -v apt-get >/dev/null; then
        mkdir -p target/promtool
        (
            cd target/promtool || exit
            apt-get download --quiet=2 prometheus 2>/dev/null || { apt-get update --quiet=2 && apt-get download --quiet=2 prometheus; }
            dpkg --extract prometheus_*.deb .
            rm prometheus_*.deb
        )
    fi
    ;;
esac
