# Blockgate. `make help` lists the targets.
GO      ?= go
BIN     := bin
LDFLAGS := -s -w
# One static binary: no C compiler, no shared library.
export CGO_ENABLED ?= 0

.PHONY: help build run test unit check race fuzz bench pieces judge soak outside clean FORCE

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# Each C library has a process of its own. It is loaded at run time: neither this
# binary nor the plugins need a C compiler, or the library, to be built.
PLUGINS := $(patsubst cmd/%/main.go,$(BIN)/%,$(wildcard cmd/blockgate-*/main.go))

build: $(BIN)/blockgate $(PLUGINS) ## bin/blockgate, static, with its other names and its plugins beside it

$(BIN)/blockgate-%: FORCE
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/blockgate-$*

$(BIN)/blockgate: FORCE
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/blockgate
	@for n in tgtd tgtadm tgt-admin tgt-setup-lun tgtimg; do ln -sf blockgate $(BIN)/$$n; done

DISK ?= $(BIN)/demo.img
SIZE ?= 1G
LISTEN ?= 127.0.0.1:3260
run: build ## export a demo disk on loopback and print how to attach it
	@$(BIN)/blockgate serve $(DISK) --size $(SIZE) --listen $(LISTEN)

test: ## everything: packages, vet, unit tests with -race, outside judges, a Linux guest
	@test/run.sh

unit: ## unit tests alone, without -race
	@$(GO) test ./...

check: ## formatting, vet, static analysis, known vulnerabilities
	@test/check.sh

race: ## unit tests with the race detector
	@CGO_ENABLED=1 $(GO) test -race ./...

T ?= 60s
fuzz: ## every fuzz target for T (60s) each
	@test/fuzz.sh $(T)

BENCH ?=
bench: build ## side by side with tgt and istgt on loopback; BENCH=-quick takes two minutes, BENCH=-h lists options
	@test/packages.sh bench
	@$(GO) build -trimpath -o $(BIN)/blockgate-bench ./test/bench
	@$(BIN)/blockgate-bench -blockgate $(BIN)/blockgate -results $(BIN)/bench $(BENCH)

pieces: ## Go benchmarks of the pieces
	@$(GO) test -run '^$$' -bench . -benchmem ./...

judge: ## the longer outside judges: every guest test, more units, more crashes
	@test/outside/run.sh all

soak: ## kill -9 under load, for hours if you let it: SOAK_SECONDS=3600
	@test/outside/run.sh soak

clean: ## remove what was built
	@rm -rf $(BIN)
