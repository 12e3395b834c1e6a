# Millrace. `make run` shows it at work, `make test` proves it.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PKG     := github.com/prometheus/common/version
LDFLAGS := -s -w -X $(PKG).Version=$(VERSION) -X $(PKG).Revision=$(shell git rev-parse HEAD 2>/dev/null) -X $(PKG).Branch=$(shell git rev-parse --abbrev-ref HEAD 2>/dev/null)
# TAGS leaves service discovery mechanisms out, as in Prometheus: make build TAGS="remove_all_sd enable_dns_sd enable_kubernetes_sd".
TAGS    ?=

# Each fuzz target runs for FUZZTIME.
FUZZTIME ?= 10s
TESTTIME ?= 70m

.PHONY: all build images run test lint bench fuzz clean

all: build

build: ## bin/millrace and bin/bench
	$(GO) build -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/millrace ./services/millrace
	$(GO) build -ldflags '-s -w' -o bin/bench ./bench

images: ## the images of docker-compose.yml but Grafana's, without a registry: from Go modules, with the machine's Go
	.ci/images

run: build ## scrape Millrace itself and a demo target, and write to a receiver that checks every sample
	@deploy/quickstart/run bin

test: ## all tests; the race detector is in the packages' tests, and in the millrace that the end-to-end tests run
	code=0; \
	$(GO) test -race -timeout=$(TESTTIME) $$($(GO) list ./... | grep -v /e2e) || code=1; \
	MILLRACE_TEST_RACE=1 $(GO) test -timeout=$(TESTTIME) ./services/millrace/e2e || code=1; \
	exit $$code

lint: ## formatting, vet, staticcheck
	@test -z "$$(gofmt -l bench deploy pkg services)" || { echo "not gofmt'ed:"; gofmt -l bench deploy pkg services; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

bench: build ## CPU, memory, latency and stored bytes; beside Prometheus and vmagent where BENCH_PROMETHEUS and BENCH_VMAGENT name their binaries
	bin/bench run --millrace=bin/millrace
	bin/bench run --millrace=bin/millrace --kind=recorded
	bin/bench run --millrace=bin/millrace --rounds=1 --outage=60s

# Go's engine sometimes ends with "context deadline exceeded" when the time is over, without an input that fails: that is no finding.
fuzz: ## every fuzz target for FUZZTIME
	@set -e; out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; \
	for dir in $$(grep -rl --include='*_test.go' '^func Fuzz' bench pkg services | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -h '^func Fuzz' $$dir/*_test.go | sed 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/'); do \
	    echo "fuzzing $$dir $$f for $(FUZZTIME)"; \
	    { $(GO) test ./$$dir -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x -parallel 2 2>&1; echo $$? >$$out/code; } | tee $$out/log; \
	    [ "$$(cat $$out/code)" = 0 ] && continue; \
	    if grep -q 'Failing input' $$out/log || ! grep -q '^ *context deadline exceeded$$' $$out/log; then exit 1; fi; \
	    echo "the time was over; nothing found"; \
	  done; \
	done

clean:
	rm -rf bin data
