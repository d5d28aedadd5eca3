# Two commands:
#   make run    installs what is missing, builds, and runs an image in a kernel of its own
#   make test   runs every test
# `make build` makes target/release/{hyper,hyperd,containerd-shim-hyper-v2,hyper-jail,hyper-share,hyper-vmm} and
# target/guest/{hyperkernel-um,hyperkernel-x86_64,initramfs.cpio}.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PREFIX ?= /usr/local
DESTDIR ?=
PROGRAMS := hyper hyperd containerd-shim-hyper-v2 hyper-jail hyper-share hyper-vmm
GUEST := hyperkernel-um hyperkernel-x86_64 initramfs.cpio

.PHONY: help run test build programs guest lint unit lab e2e install clean

help:
	@sed -n 's/^#   //p' Makefile

run: build
	@scripts/deps run
	@scripts/first-run

test:
	@scripts/deps build test
	@scripts/test

build:
	@scripts/deps build
	@$(MAKE) --no-print-directory programs guest

programs:
	@echo "build: programs (release)"
	@cargo build --release --locked -p hyper-cli -p hyperd -p containerd-shim-hyper-v2 -p hyper-jail -p hyper-share -p hyper-vmm

guest:
	@kernel/build all --out target/guest
	@cargo run --quiet --locked -p xtask -- initramfs --out target/guest/initramfs.cpio

lint:
	@scripts/test lint
unit:
	@scripts/test unit
lab: guest
	@scripts/test lab
e2e: build
	@scripts/test e2e

# Programs to PREFIX/bin, guest files to PREFIX/share/hyper.
install:
	@install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/hyper
	@install -m 0755 $(PROGRAMS:%=target/release/%) $(DESTDIR)$(PREFIX)/bin/
	@install -m 0644 $(GUEST:%=target/guest/%) $(DESTDIR)$(PREFIX)/share/hyper/
	@chmod 0755 $(DESTDIR)$(PREFIX)/share/hyper/hyperkernel-um

clean:
	@cargo clean
