#!/usr/bin/env bash
# Has Tint, the WGSL compiler of Chromium, check the kernels of the demo in every
# weight type, of GPT-2 124M, and of every checkpoint of the tests. Needs no GPU,
# and target/debug/kiln as `cargo build` makes it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/packages.sh

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    install_or_say nodejs npm <<'TEXT'
error: checking kernels with Tint needs Node.js 18 or later, and npm:
  Fedora   dnf install nodejs npm
  Arch     pacman -S nodejs npm
  Alpine   not there: Tint's package is built for glibc
  macOS    brew install node
  Windows  winget install OpenJS.NodeJS
TEXT
fi
(
    cd scripts/check-wgsl
    npm ls >/dev/null 2>&1 || npm ci --ignore-scripts --no-audit --no-fund
)

artifacts="$(mktemp -d)"
trap 'rm -rf "$artifacts"' EXIT
compile() {
    local name="$1"
    shift
    target/debug/kiln compile "$@" -o "$artifacts/$name.kiln" >"$artifacts/log" 2>&1 || {
        cat "$artifacts/log" >&2
        echo "error: \`$name\` does not compile" >&2
        exit 1
    }
}
for dtype in f32 f16 q8 q4; do
    compile "demo-$dtype" demo --dtype "$dtype"
done
compile gpt2 --random-weights gpt2 --dtype q4
for config in tests/fixtures/*/*/config.json; do
    folder="$(dirname "$config")"
    compile "$(basename "$(dirname "$folder")")-$(basename "$folder")" "$folder"
done

node scripts/check-wgsl/check.mjs "$artifacts"/*.kiln
