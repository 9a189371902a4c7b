#!/usr/bin/env bash
# Every check of kiln, from formatting to the documentation.
#
# The tests run kernels, so they need a graphics adapter with Vulkan and one with
# OpenGL, and kernels are checked with Tint, which needs Node.js. What is missing
# is installed (Debian and Ubuntu); elsewhere this script says what to install,
# and fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

step() { printf '\n== %s\n' "$*"; }

if ! command -v cargo >/dev/null; then
    echo "error: cargo was not found; install a Rust toolchain from https://rustup.rs" >&2
    exit 1
fi

# Mesa complains about a desktop's folder where there is no desktop.
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}"
# Snapshots are compared, never rewritten.
export INSTA_UPDATE=no
# No test needs a network.
export HF_HUB_OFFLINE=1

# The back ends that the tests need and no adapter offers.
missing_backends() {
    local devices backend
    devices="$(target/debug/kiln devices --json 2>/dev/null)"
    case "$(uname -s)" in
    Linux) for backend in vulkan gl; do
        grep -q "\"backend\":\"$backend\"" <<<"$devices" || echo "$backend"
    done ;;
    *) grep -q '"device":0' <<<"$devices" || echo any ;;
    esac
}

install_drivers() {
    # What the Vulkan and the EGL loader look for, with Mesa's software drivers.
    local packages=(mesa-vulkan-drivers libegl1 libgl1-mesa-dri)
    install_or_say "${packages[@]}" <<'TEXT'
error: the tests need an adapter with Vulkan and one with OpenGL (through EGL).
Install your GPU's driver, or Mesa's software drivers:
  Fedora   dnf install mesa-vulkan-drivers mesa-libEGL mesa-dri-drivers
  Arch     pacman -S vulkan-swrast mesa
  Alpine   apk add mesa-vulkan-swrast mesa-egl mesa-gles mesa-dri-gallium
  macOS    nothing: Metal is there
  Windows  the driver of the GPU
TEXT
}

step "build"
cargo build --workspace --locked

step "adapters"
missing="$(missing_backends)"
if [ -n "$missing" ]; then
    echo "no adapter for: $(tr '\n' ' ' <<<"$missing")"
    install_drivers
    missing="$(missing_backends)"
    if [ -n "$missing" ]; then
        echo "error: drivers were installed, and still there is no adapter for: $missing" >&2
        exit 1
    fi
fi
target/debug/kiln devices

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "tests"
cargo test --workspace --locked

step "a program on the runtime alone"
# Tests run the other examples; this one is a package of its own, whose tokens
# must be those of the command line.
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
target/debug/kiln compile demo -o "$scratch/demo.kiln" >/dev/null
ids="$(target/debug/run-artifact "$scratch/demo.kiln" 54 104 101 | paste -sd, -)"
echo "continued with $ids"
target/debug/kiln run "$scratch/demo.kiln" --tokens 54,104,101 -n 16 --temperature 0 --json |
    grep -F "\"tokens\":[$ids]" >/dev/null

step "kernels, as browsers see them"
scripts/check-wgsl.sh

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

step "all is well"
