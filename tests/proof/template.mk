# What the template can be told besides; the Makefile reads it.
LAB := proof

# make rehearse: another than the service, axum, for contrast.
PEER      ?=
REHEARSAL  = $(if $(PEER),--peer $(PEER))

.PHONY: proofs containers fuzz bench
test chaos: proofs

chaos: containers

proofs:
	@tests/setup.sh proofs

containers:
	@tests/setup.sh containers

test: ## Those on booted hosts as well, with root
rehearse: ## The same on axum, for contrast [PEER=axum]
chaos: ## Everything that can go wrong as well, and 500 restarts; takes more than an hour

fuzz: ## Look for what breaks a handover, for a while [SECONDS=900]
	@tests/setup.sh fuzz
	tests/fuzz/fuzz.sh $(or $(SECONDS),900)

bench: ## Throughput, and what a request takes layer by layer, beside bare axum's
	@tests/setup.sh bench
	cargo run --release --package proof -- bench
	cargo run --release --package proof -- cost
