#!/bin/sh
# Programs that some tests drive and that pip cannot install: promtool, and a browser with a font.
# `make test` runs it. Root on Debian or Ubuntu gets what is missing; anybody else a hint. It never
# fails: a test whose program is missing is skipped, and says so.
set -u

wanted=""
command -v promtool >/dev/null || wanted="$wanted prometheus"
command -v chromium >/dev/null || wanted="$wanted chromium fonts-dejavu-core"
[ -n "$wanted" ] || exit 0

hint() {
    echo "Tests that need them are skipped. On Debian: sudo apt-get install --no-install-recommends$wanted" >&2
    exit 0
}

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    hint
fi

# A machine that cannot reach its mirror must not hold up the tests.
apt() {
    DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -qq \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60 \
        "$@" </dev/null >/dev/null 2>&1
}
echo "Installing$wanted, which tests drive." >&2
apt update
# Debian starts a Prometheus as soon as it is installed; only its promtool is wanted here.
denial=/usr/sbin/policy-rc.d
if ! [ -e "$denial" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$denial" && chmod +x "$denial"
    trap 'rm -f "$denial"' EXIT
fi
# One by one: a package that this release does not have keeps none of the others away.
missing=""
for package in $wanted; do
    apt install --no-install-recommends "$package" || missing="$missing $package"
done
if [ -n "$missing" ]; then
    wanted="$missing"
    hint
fi
