# `just` lists the recipes. They are short names; what they do stands in scripts/ and in cargo's own options.

_default:
    @just --list --unsorted

# Build the three programs
build *ARGS:
    cargo build --locked --workspace --bins {{ARGS}}

# Build the three programs as they are deployed
release: (build "--release")

# Run all tests
test *ARGS:
    scripts/test {{ARGS}}

# Formatting, lints, walls, unit tests
check: (test "--fast")

# The main job on this machine, from nothing
demo *ARGS:
    scripts/demo {{ARGS}}

# The main job with the real sleap-nn (installs 7 GB, once)
e2e-sleap *ARGS:
    scripts/e2e-sleap {{ARGS}}

# NATs, firewalls and breaks in network namespaces: nats, matrix, cuts, moves, server-restart
lab *ARGS:
    scripts/lab {{ARGS}}

# Format the source
fmt:
    cargo fmt --all

# Lints, as CI runs them
lint:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings

# Licences, banned crates, sources, advisories
deny:
    cargo deny check

# The crates' documentation
doc *ARGS:
    cargo doc --locked --workspace --no-deps {{ARGS}}

# A signaling server on loopback
run-server *ARGS:
    cargo run --locked --package signaling-server -- --listen 127.0.0.1:8001 {{ARGS}}

# A worker for it; its invite goes to .demo/invite
run-worker *ARGS:
    mkdir -p .demo
    cargo run --locked --package worker -- --server http://127.0.0.1:8001 --data-dir .demo/worker --invite-file .demo/invite {{ARGS}}

# A client of that worker, such as `just run-client train package.zip`
run-client *ARGS:
    cargo run --locked --package client -- --invite-file .demo/invite {{ARGS}}

# Remove what was built, the Python environment and the local worker's data
clean:
    cargo clean
    rm -rf .venv .demo
