#!/bin/sh
# Writes requirements/clients/*.txt anew: the clients of others that tests/clients drives, in the
# fewest environments that their pins allow. `make lock` runs it; docs/migration.md tells the versions.
set -eu
cd "$(dirname "$0")/.."

lock() {
    name=$1 title=$2
    shift 2
    venv=$(mktemp -d)
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet --upgrade pip
    "$venv/bin/pip" install --quiet "$@"
    {
        echo "# $title. Written by \`make lock\`; do not edit."
        "$venv/bin/pip" freeze | LC_ALL=C sort --ignore-case
    } >"requirements/clients/$name.txt"
    rm -rf "$venv"
}

lock tgi "lorax-client, text-generation and huggingface_hub 0.x" \
    lorax-client text-generation 'huggingface_hub<1'
lock gateways "LiteLLM, LangChain, the openai that they agree on, and huggingface_hub 2.x" \
    litellm langchain-openai 'huggingface_hub>=2,<3'
