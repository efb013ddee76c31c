#!/bin/sh
# Writes requirements/lock.txt anew: what pip resolves today for all extras and the dev group.
# `make lock` runs it. torch is held to $TORCH; its own CUDA packages are left out, because
# torch names their exact versions itself and a machine without a GPU needs none of them. triton
# is held to $TRITON, the version that this torch's CUDA builds name: a CPU runs its interpreter.
set -eu
cd "$(dirname "$0")/.."
TORCH=${TORCH:-2.13.0}
TRITON=${TRITON:-3.7.1}

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --upgrade pip
"$venv/bin/pip" install --quiet "torch==$TORCH" "triton==$TRITON" '.[all]' --group dev
{
    echo "# Exact versions of everything \`make setup\` installs. Written by \`make lock\`; do not edit."
    "$venv/bin/pip" list --format=freeze |
        grep -vE '^(adex|nvidia|cuda)[-_=a-z0-9]*==' |
        sed -E -e 's/\+[a-z0-9.]+$//' -e "s/^triton==.*/&; sys_platform == 'linux'/" |
        LC_ALL=C sort --ignore-case
} >requirements/lock.txt
