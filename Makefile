# What can be done with this service. `make help` lists it.

NAME   := $(shell sed -n '/^name = "\(.*\)"/ { s//\1/p; q; }' Cargo.toml)
PREFIX := $(shell echo '$(NAME)' | tr a-z- A-Z_)
BUILT  := $(or $(CARGO_TARGET_DIR),target)$(TARGET:%=/%)/release/$(NAME)

# make rehearse: who is restarted (this service, or axum for contrast), how often, and on which Debian.
PEER     ?=
RESTARTS ?= 20
DEBIAN   ?= bookworm

# make deploy and its kin: HOST="root@a root@b", SSH_OPTS="-p 2222 -i key", TARGET= for another platform, RELEASE= to go back to.
HOST     ?=
SSH_OPTS ?=
TARGET   ?=
RELEASE  ?=
export HOST SSH_OPTS

.PHONY: help run rehearse test check bench deploy rollback status logs

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

run: ## Run the service here, with a developer's log
	$(PREFIX)_LOG__FILTER=debug cargo run

rehearse: ## Restart it under load on a throwaway Debian here, and tell what that cost [PEER=axum RESTARTS=20 DEBIAN=bookworm]
	@tests/setup.sh rehearse
	cargo run --release --package lab -- rehearse --restarts $(RESTARTS) --debian $(DEBIAN) $(if $(PEER),--peer $(PEER))

test: ## Every test, from nothing
	@tests/setup.sh test
	@tests/all.sh

check: ## The fast checks: format, lints, shell scripts
	@tests/all.sh format lints scripts

bench: ## Throughput, beside bare axum's
	@tests/setup.sh bench
	cargo run --release --package lab -- bench

deploy: ## Put it on HOST=root@host, or replace what runs there [SSH_OPTS="-p 2222" TARGET=x86_64-unknown-linux-musl]
	cargo build --release --bin $(NAME) $(if $(TARGET),--target $(TARGET))
	@deploy/push $(NAME) $(BUILT)

rollback: ## Put the previous release on HOST= back, or RELEASE=
	@ssh $(SSH_OPTS) $(HOST) sh /opt/$(NAME)/current/host rollback $(NAME) $(RELEASE)

status: ## What runs on HOST=
	@ssh $(SSH_OPTS) $(HOST) sh /opt/$(NAME)/current/host status $(NAME)

logs: ## Follow the journal on HOST=
	@ssh -t $(SSH_OPTS) $(HOST) journalctl --unit=$(NAME).service --lines=50 --follow
