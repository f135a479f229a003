# What can be done with this service. `make help` lists it.

NAME   := $(shell sed -n '/^name = "\(.*\)"/ { s//\1/p; q; }' Cargo.toml)
PREFIX := $(shell echo '$(NAME)' | tr a-z- A-Z_)
# Builds it, and says where it is: that depends on TARGET=, on the environment and on cargo's own configuration.
BUILD   = cargo build --release --bin $(NAME) $(addprefix --target ,$(or $(TARGET),$(OWN_TARGET))) \
	--message-format=json-render-diagnostics | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'

# make rehearse: how often, and on which Debian.
RESTARTS ?= 20
DEBIAN   ?= bookworm

# make deploy and its kin: HOST="root@a anna@b", SSH_OPTS="-p 2222 -i key", TARGET= for another platform, RELEASE= to go
# back to, WATCH= seconds to watch a new release (10), TRIAL=no where it must not run beside the old one, YES=1 to uninstall
# without being asked.
HOST     ?=
SSH_OPTS ?=
TARGET   ?=
RELEASE  ?=
export HOST SSH_OPTS WATCH TRIAL YES

# make image: what it is called.
IMAGE ?= $(NAME):$(shell sed -n '/^version = "\(.*\)"/ { s//\1/p; q; }' Cargo.toml)

# make update: FROM= where the template is, CHECK=1 to ask only, BASE= the commit of it that this service is of.
FROM ?=
export FROM CHECK BASE

.PHONY: help run rehearse test check chaos deploy deb image rollback apply status drain undrain logs top update uninstall

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run: ## Run the service here, with a developer's log
	$(PREFIX)_LOG__FILTER=debug cargo run

rehearse: ## Restart it under load on a throwaway Debian here, and tell what that cost [RESTARTS=20 DEBIAN=bookworm]
	@tests/setup.sh rehearse
	cargo run --release --package $(LAB) -- rehearse --restarts $(RESTARTS) --debian $(DEBIAN) $(REHEARSAL)

test: ## Every test that needs no root, from nothing
	@tests/setup.sh test
	@tests/all.sh

check: ## The fast checks: format, lints, shell scripts
	@tests/all.sh format lints scripts

chaos: ## Many restarts instead: 200 before every kind of client, on each of both Debians; takes half an hour
	@tests/setup.sh rehearse
	@tests/all.sh chaos

deploy: ## Put it on HOST=root@host, or replace what runs there [SSH_OPTS="-p 2222" TARGET=x86_64-unknown-linux-musl]
	@built=$$($(BUILD)) && [ -n "$$built" ] && \
	{ ! "$$built" --version >/dev/null 2>&1 || "$$built" check >/dev/null; } && \
	deploy/push $(NAME) "$$built"

deb: ## A Debian package of it, whose upgrade is a deploy [TARGET=]
	@built=$$($(BUILD)) && [ -n "$$built" ] && deploy/deb $(NAME) "$$built" "$${built%/*}"

# With a target the flags are the program's alone, and not those of what builds it.
image: OWN_TARGET = $(shell rustc --version --verbose | sed -n 's/^host: //p')
image: ## A container image of it, with nothing in it but its program, for podman [IMAGE=name:tag TARGET=]
	@built=$$(RUSTFLAGS="-C target-feature=+crt-static" $(BUILD)) && [ -n "$$built" ] && \
	podman build --quiet --layers=false --format docker --tag "$(IMAGE)" --file deploy/Containerfile \
		--build-arg BINARY="$${built##*/}" "$${built%/*}"

rollback: ## Put the previous release on HOST= back, or RELEASE=
	@deploy/tell $(NAME) rollback $(RELEASE)

apply: ## Let a changed configuration on HOST= take effect
	@deploy/tell $(NAME) apply

status: ## What runs on HOST=
	@deploy/tell $(NAME) status

drain: ## Take HOST= out of its balancer's rotation, until undrain or a boot: /readyz says 503, clients are told to go
	@deploy/tell $(NAME) drain

undrain: ## Take HOST= back
	@deploy/tell $(NAME) undrain

logs: ## Follow the journal on HOST=
	@deploy/tell $(NAME) logs

top: ## Watch what every instance on HOST= does, second by second
	@deploy/tell $(NAME) top

update: ## Bring it to what its template is by now, FROM=git address or path [CHECK=1 asks whether there is more]
	@[ -n "$$FROM" ] || { echo "say where the template is: make update FROM=git address or path" >&2; exit 2; }
	@template=$$(mktemp -d) && trap 'rm -rf "$$template"' EXIT && trap 'exit 2' HUP INT TERM && \
	git clone --quiet "$$FROM" "$$template" && sh "$$template/tests/update.sh" .

uninstall: ## Remove it from HOST=, but for its configuration
	@deploy/tell $(NAME) uninstall

# The crate that rehearses. The template has one that can more, and targets of its own.
LAB := lab
-include tests/proof/template.mk
