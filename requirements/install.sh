#!/bin/sh
# Brings .venv to what requirements/lock.txt says. `make setup` runs it; running it again is safe.
#   PYTHON       the interpreter to build .venv with; by default the first of 3.11 to 3.13 found
#   TORCH_INDEX  a package index to take torch from, such as PyTorch's own index of CPU builds
set -eu
cd "$(dirname "$0")/.."

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if fits "$name"; then
            echo "$name"
            return 0
        fi
    done
    return 1
}

# Debian splits venv from python3; a machine without either gets both.
install_system_python() {
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv </dev/null
    else
        echo "Adex needs Python 3.11, 3.12 or 3.13 with venv." >&2
        echo "On Debian or Ubuntu: sudo apt-get install python3 python3-venv" >&2
        exit 1
    fi
}

make_venv() {
    if ! python=$(find_python) || ! "$python" -c 'import ensurepip' 2>/dev/null; then
        install_system_python
        python=$(find_python) || {
            echo "No Python 3.11 to 3.13 found. Name one: make setup PYTHON=/path/to/python3.12" >&2
            exit 1
        }
    fi
    "$python" -m venv --clear .venv
}

fits .venv/bin/python || make_venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

echo "Installing requirements/lock.txt into .venv (the first time takes a few minutes)."
if [ -n "${TORCH_INDEX:-}" ]; then
    pip install --quiet --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements/lock.txt)"
fi
pip install --quiet --requirement requirements/lock.txt
pip install --quiet --no-deps --no-build-isolation --editable .

# The code generator needs an older protobuf than the rest, so it lives in a folder of its own.
if ! [ -d .venv/protoc ]; then
    pip install --quiet --no-deps --only-binary :all: --target .venv/protoc \
        --requirement requirements/protos.txt ||
        echo "No grpcio-tools for this platform: everything works except 'make protos'." >&2
fi
