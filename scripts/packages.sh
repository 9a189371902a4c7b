# For scripts that install system packages: `. scripts/packages.sh`.

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "error: installing packages needs root, and there is no sudo; run as root: $*" >&2
        exit 1
    fi
}

# Installs packages of Debian or Ubuntu. Elsewhere it prints its standard input,
# which says what to install, and fails.
install_or_say() {
    if command -v apt-get >/dev/null; then
        as_root apt-get update -q </dev/null
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@" </dev/null
    else
        cat >&2
        exit 1
    fi
}
