# Bulkhead: build, install, test. `make help` lists what there is.
#
# Whatever is made inside the tree uses the profile "fast" (target/fast, out/), which builds quickly;
# `make install` and `make bench` use "release" (target/release, out/release). PROFILE= overrides both.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

DESTDIR ?=
PREFIX ?= /usr
SYSCONFDIR ?= /etc
# The guest's kernel: "pinned" (images/kernel.env) or "newest" (what apt offers now).
KERNEL ?= pinned
# Which specs `conformance` and `node-conformance` run: QUICK=yes for a sub-set, FOCUS= for those that match a regular expression.
QUICK ?=
FOCUS ?=
# Whether `install` brings virtiofsd and vhost-device-vsock along, which Debian 12 has not.
HELPERS ?= yes

profile = $(or $(PROFILE),fast)
release_profile = $(or $(PROFILE),release)
guest_dir = $(if $(filter fast,$(1)),out,out/$(1))

# What the black-box programs look for: binaries, guest, peers.
places = BULKHEAD_BIN_DIR=target/$(1) BULKHEAD_GUEST_DIR=$(call guest_dir,$(1)) BULKHEAD_PEERS=.peers

.PHONY: help setup build image install demo test test-long conformance node-conformance node bench clean fmt lint deny

help: ## this list
	@printf 'Bulkhead: every Kubernetes pod in its own microVM.\n\n'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)$$/\1\t\2/p' $(MAKEFILE_LIST) | \
	    while IFS=$$'\t' read -r name text; do printf '  make %-16s %s\n' "$$name" "$$text"; done
	@printf '\nA newcomer types `make demo`. Everything made lies in target/, out/ and .peers/.\n'

setup: ## what the machine lacks: Debian packages, pinned containerd and helper programs in .peers/
	@.ci/setup

build: ## the programs for the host (PROFILE=fast or release; default fast)
	@echo "== build ($(profile))"
	cargo build --locked --profile $(profile) $(if $(filter fast,$(profile)),--workspace --exclude bulkhead-agent,\
	    --package bulkhead-sandboxer --package containerd-shim-bulkhead-v2)

image: ## the guest's kernel and image, into out/ (KERNEL=pinned or newest)
	@echo "== image ($(profile))"
	@agent=$$(images/agent.sh $(profile)); \
	images/build.sh --agent "$$agent" --out $(call guest_dir,$(profile)) --cache .peers/kernel --kernel $(KERNEL)

install: ## into DESTDIR= PREFIX=/usr; brings virtiofsd and its like unless HELPERS=no
	@$(MAKE) build image PROFILE=$(release_profile)
	@.ci/install '$(DESTDIR)' '$(PREFIX)' '$(SYSCONFDIR)' \
	    target/$(release_profile) $(call guest_dir,$(release_profile)) '$(HELPERS)'

demo: ## starts a pod in a VM through containerd and shows it; brings and builds only what that needs
	@.ci/demo $(profile)
	@$(call places,$(profile)) target/$(profile)/demo

test: ## everything that is checked, set-up included; the last line counts
	@.ci/test

test-long: ## what takes hours: large numbers, every containerd line, all in the node VM (STEPS= for some)
	@.ci/test-long $(STEPS)

conformance: setup build image ## the official CRI validation suite, with runc and with Bulkhead side by side
	@$(call places,$(profile)) \
	    cargo run --locked --quiet --profile $(profile) --package bulkhead-tests --bin conformance -- \
	    $(if $(FOCUS),--focus '$(FOCUS)',$(if $(QUICK),--quick))

node-conformance: setup build image ## Kubernetes' node end-to-end suite, with runc and with Bulkhead side by side
	@tests/peers/build.sh kubernetes
	@$(call places,$(profile)) \
	    cargo run --locked --quiet --profile $(profile) --package bulkhead-tests --bin node_conformance -- \
	    $(if $(FOCUS),--focus '$(FOCUS)',$(if $(QUICK),--quick))

node: setup build image ## what needs a machine of its own, in a VM: KVM, cgroup v2, a power cut
	@tests/node-vm/check

bench: setup ## the measurements: a table and a JSON file (PART=start or daily for half of them)
	@$(MAKE) build image PROFILE=$(release_profile)
	@cargo build --locked --quiet --profile $(release_profile) --package bulkhead-tests --bin bench --bin vsock_flood
	@$(call places,$(release_profile)) target/$(release_profile)/bench $(PART)

fmt: ## formats the code
	cargo fmt --all

lint: ## formatting, clippy and documentation, warnings are errors
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --profile $(profile) -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' cargo doc --locked --workspace --no-deps --profile $(profile) --quiet

deny: ## licences, sources and bans of all dependencies; advisories where their database can be had
	@.ci/deny

clean: ## removes target/ and out/; .peers/ stays (rm -rf .peers removes it)
	rm -rf target out
