#!/usr/bin/env bash
# Every check of kiln, from formatting to the documentation.
#
# The tests run kernels on Mesa's software drivers, for Vulkan and for OpenGL, also where
# there is a GPU: kernels for CPUs are among them, and results must be the same everywhere.
# Kernels are checked with Tint too, which needs Node.js and fetches a package of its own.
# What is missing is installed (Debian and Ubuntu); elsewhere this script says what to
# install, and fails.
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

if [ "$(uname -s)" != Linux ]; then
    cat >&2 <<'TEXT'
error: all tests run on Linux alone, where Mesa's software drivers are. These need none:
  cargo test -p kiln-ir -p kiln-passes -p kiln-shaders -p kiln-codegen -p kiln-models -p kiln-emulator
  cargo test --test emulated --test launches --test snapshots
TEXT
    exit 1
fi

# Points the Vulkan and the EGL loader at the software drivers; another Vulkan driver can be
# named in VK_DRIVER_FILES.
use_software_drivers() {
    local vulkan=(/usr/share/vulkan/icd.d/lvp_icd*.json) egl=/usr/share/glvnd/egl_vendor.d/50_mesa.json
    if [ -z "${VK_DRIVER_FILES:-}" ] && [ -e "${vulkan[0]}" ]; then
        export VK_DRIVER_FILES="${vulkan[0]}"
        # What older loaders call it.
        export VK_ICD_FILENAMES="$VK_DRIVER_FILES"
    fi
    if [ -e "$egl" ]; then
        export __EGL_VENDOR_LIBRARY_FILENAMES="$egl"
    fi
    # Mesa's own choice between a GPU and none; and vectors of 256 bits, which it takes by
    # itself on x86-64 alone: subgroups are as large as they are.
    export LIBGL_ALWAYS_SOFTWARE=1 LP_NATIVE_VECTOR_WIDTH=256
    # Kernels that it keeps are not told apart by that width.
    export MESA_SHADER_CACHE_DIR="$PWD/target/driver-cache"
}

# The back ends that the tests need and no software driver offers.
missing_backends() {
    local devices backend
    devices="$(target/debug/kiln devices --json 2>/dev/null | sed 's/},{/}\n{/g')"
    for backend in vulkan gl; do
        grep "\"backend\":\"$backend\"" <<<"$devices" | grep -q llvmpipe || echo "$backend"
    done
}

install_drivers() {
    # What the Vulkan and the EGL loader look for, with Mesa's software drivers.
    local packages=(mesa-vulkan-drivers libegl1 libgl1-mesa-dri)
    install_or_say "${packages[@]}" <<'TEXT'
error: the tests need Mesa's software drivers, for Vulkan and for OpenGL (through EGL):
  Fedora   dnf install mesa-vulkan-drivers mesa-libEGL mesa-dri-drivers
  Arch     pacman -S vulkan-swrast mesa
  Alpine   apk add mesa-vulkan-swrast mesa-egl mesa-gles mesa-dri-gallium
If they are there, name the Vulkan one's lvp_icd*.json in VK_DRIVER_FILES.
TEXT
}

step "build"
cargo build --workspace --locked

step "adapters"
use_software_drivers
missing="$(missing_backends)"
if [ -n "$missing" ]; then
    echo "no software driver for: $(tr '\n' ' ' <<<"$missing")"
    install_drivers
    use_software_drivers
    missing="$(missing_backends)"
    if [ -n "$missing" ]; then
        echo "error: drivers were installed, and still there is none for: $missing" >&2
        exit 1
    fi
fi
target/debug/kiln devices

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
# The command without what fetches models.
cargo clippy --no-default-features --locked -- -D warnings

step "tests"
# All that fails is told, not only what fails first.
cargo test --workspace --locked --no-fail-fast

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
