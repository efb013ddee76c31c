#!/bin/sh
# Writes requirements/lock.txt anew: what pip resolves today for all extras and the dev group.
# `make lock` runs it. torch is held to $TORCH; its own CUDA packages are left out, because
# torch names their exact versions itself and a machine without a GPU needs none of them.
set -eu
cd "$(dirname "$0")/.."
TORCH=${TORCH:-2.13.0}

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --upgrade pip
"$venv/bin/pip" install --quiet "torch==$TORCH" '.[all]' --group dev
{
    echo "# Exact versions of everything \`make setup\` installs. Written by \`make lock\`; do not edit."
    "$venv/bin/pip" list --format=freeze |
        grep -vE '^(adex|nvidia|cuda|triton)[-_=a-z0-9]*==' |
        sed -E 's/\+[a-z0-9.]+$//' |
        LC_ALL=C sort --ignore-case
} >requirements/lock.txt
