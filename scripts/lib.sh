# Shell functions that the scripts share; source it from bash after `set -euo pipefail`.
# shellcheck shell=bash
#
# What lives here: messages, missing Debian packages, the Python environment, cargo's tools, where the built programs are.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
VENV="$ROOT/.venv"
# Emulators and checkers that only tests call.
TOOLS="$ROOT/.venv-tools"
NODE_TOOLS="$ROOT/.node-tools"

if [[ -t 2 && -z "${NO_COLOR-}" && "${TERM-}" != dumb ]]; then
    BOLD=$'\e[1m' RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' GREEN='' YELLOW='' PLAIN=''
fi

# Messages go to stderr: a script's stdout is for its results.
say() { printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$*" >&2; }
good() { printf '%s ok%s  %s\n' "$GREEN" "$PLAIN" "$*" >&2; }
warn() { printf '%swarning:%s %s\n' "$YELLOW" "$PLAIN" "$*" >&2; }
die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}

# need_command NAME HINT: the command must be there.
need_command() {
    command -v "$1" >/dev/null || die "$1 is needed and was not found; $2"
}

# ensure_debian PACKAGE...: installs the packages that are missing, where we may; says what to install where we may not.
ensure_debian() {
    local package missing=() as_root=()
    command -v dpkg-query >/dev/null || {
        warn "this is no Debian; make sure that you have the like of: $*"
        return 0
    }
    for package in "$@"; do
        [[ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" == *"ok installed" ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        if ! sudo -n true 2>/dev/null; then
            die "missing Debian packages; install them with: sudo apt-get install ${missing[*]}"
        fi
        as_root=(sudo -n)
    fi
    say "Installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# need_python: $PYTHON must be 3.9 or newer, and able to make environments.
need_python() {
    command -v "$PYTHON" >/dev/null || ensure_debian python3 python3-venv
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
        die "$PYTHON is $("$PYTHON" --version 2>&1); 3.9 or newer is needed (name another one in PYTHON)"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || ensure_debian python3-venv
}

# ensure_venv DIR NAME ARGUMENT...: an environment with `pip install ARGUMENT...` done in it. A stamp tells that nothing
# has changed, so that the second call takes no time; it covers the Python version and the content of files named.
ensure_venv() {
    local dir="$1" name="$2" word stamp
    shift 2
    need_python
    stamp="$({
        "$PYTHON" --version
        printf '%s\n' "$dir" "$@"
        for word in "$@"; do [[ ! -f "$word" ]] || cat "$word"; done
    } | sha256sum | cut -d' ' -f1)"
    mkdir -p "$dir"
    # Two scripts at once: the second waits, and finds the work done. The lock is the folder itself, which stays.
    (
        flock 9
        if [[ "$(cat "$dir/.stamp" 2>/dev/null)" == "$stamp" && -x "$dir/bin/python" ]]; then exit 0; fi
        say "Setting up $name"
        find "$dir" -mindepth 1 -delete
        "$PYTHON" -m venv "$dir"
        "$dir/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
        printf '%s\n' "$stamp" >"$dir/.stamp"
    ) 9<"$dir"
}

# ensure_python: the environment of the trainer and its tests, in .venv.
ensure_python() {
    ensure_venv "$VENV" "the Python environment in .venv" -r "$ROOT/test_files/requirements.txt"
}

# ensure_tools: emulators of AWS and the checker of the REST interface, in .venv-tools.
ensure_tools() {
    ensure_venv "$TOOLS" "the tests' tools in .venv-tools" -r "$ROOT/test_files/tools.txt"
}

# ensure_node_tools: an emulator of AWS and a checker of workflows, which run on Node.js, in .node-tools. As with ensure_venv a stamp tells that nothing has changed.
ensure_node_tools() {
    local stamp from="$ROOT/test_files/emulators"
    command -v node >/dev/null && command -v npm >/dev/null || ensure_debian nodejs npm
    stamp="$({
        node --version
        printf '%s\n' "$NODE_TOOLS"
        cat "$from/package.json" "$from/package-lock.json"
    } | sha256sum | cut -d' ' -f1)"
    mkdir -p "$NODE_TOOLS"
    (
        flock 9
        if [[ "$(cat "$NODE_TOOLS/.stamp" 2>/dev/null)" == "$stamp" ]]; then exit 0; fi
        say "Setting up the tests' tools of Node.js in .node-tools"
        find "$NODE_TOOLS" -mindepth 1 -delete
        cp "$from/package.json" "$from/package-lock.json" "$NODE_TOOLS"
        # Nothing of what is installed needs to run to be installed.
        npm ci --prefix "$NODE_TOOLS" --ignore-scripts --no-audit --no-fund --loglevel=error >&2
        printf '%s\n' "$stamp" >"$NODE_TOOLS/.stamp"
    ) 9<"$NODE_TOOLS"
}

# need_rust: cargo, and the C compiler, linker and make that it calls.
need_rust() {
    need_command cargo "install Rust, see https://rustup.rs"
    { command -v cc && command -v make; } >/dev/null || ensure_debian build-essential
}

# ensure_cargo_tool NAME VERSION ARGUMENT...: a cargo subcommand. One that is there already is taken as it is; otherwise it is
# compiled, once, into the user's cache, and without optimisation: that is half the time, and it works for seconds only.
ensure_cargo_tool() {
    local name="$1" version="$2" tools="${XDG_CACHE_HOME:-$HOME/.cache}/webrtc-connect/tools"
    shift 2
    [[ ":$PATH:" == *":$tools/bin:"* ]] || export PATH="$PATH:$tools/bin"
    ! command -v "$name" >/dev/null || return 0
    say "Installing $name $version (a few minutes, once)"
    env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --locked --debug --root "$tools" "$name" --version "$version" "$@" >&2
}

# target_dir: where cargo builds.
target_dir() { printf '%s\n' "${CARGO_TARGET_DIR:-$ROOT/target}"; }

# build_programs [PROFILE]: builds the three programs (profile dev or release) and prints their folder. For development without AWS, which
# would take half as long again and is not called here; released programs have everything.
build_programs() {
    local profile="${1:-dev}" folder features=()
    need_rust
    folder="$profile"
    [[ "$profile" != dev ]] || folder=debug features=(--no-default-features)
    say "Building the programs ($profile)"
    (cd "$ROOT" && cargo build --quiet --locked --profile "$profile" "${features[@]}" --workspace --bins) >&2
    printf '%s/%s\n' "$(target_dir)" "$folder"
}

# need_link: what scripts/link calls.
need_link() {
    need_command unshare "it is in util-linux"
    need_command nsenter "it is in util-linux"
    command -v ip >/dev/null || ensure_debian iproute2
}

# need_lab: what scripts/lab calls: routers' rules, namespaces, certificates, a TURN server.
need_lab() {
    need_command unshare "it is in util-linux"
    need_command nsenter "it is in util-linux"
    # Programs of the administrator's that everybody may call.
    local PATH="$PATH:/usr/sbin:/sbin"
    command -v ip >/dev/null || ensure_debian iproute2
    command -v nft >/dev/null || ensure_debian nftables
    command -v openssl >/dev/null || ensure_debian openssl
    command -v turnserver >/dev/null || ensure_debian coturn
}

# build_link: builds the engine of scripts/link and prints its path. With the whole workspace, so that it takes no other features of the
# large crates than the programs do, which would build them a second time.
build_link() {
    need_command cargo "see https://rustup.rs"
    (cd "$ROOT" && cargo build --quiet --locked --release --workspace --example link) >&2
    printf '%s/release/examples/link\n' "$(target_dir)"
}

# build_load: builds the signaling server and its load generator and prints their folder; for the features see build_link.
build_load() {
    need_rust
    say "Building the signaling server and its load generator"
    (cd "$ROOT" && cargo build --quiet --locked --release --workspace --bin webrtc-server --example load) >&2
    printf '%s/release\n' "$(target_dir)"
}
