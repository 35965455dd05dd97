# What tests/run and benches/run both fetch into .cache, from the top of the repository.

have() { command -v "$1" >/dev/null 2>&1; }

# unpack_debian PACKAGE…: into .cache/tools and not installed: no service is to be started here.
unpack_debian() {
    local into=$PWD/.cache/tools work package status=0
    have apt-get && have dpkg || return 1
    work=$(mktemp -d)
    chmod 755 "$work"
    (cd "$work" && { apt-get -qq download "$@" || { apt-get -qq update && apt-get -qq download "$@"; }; } >/dev/null 2>&1) &&
        mkdir -p "$into" && for package in "$work"/*.deb; do dpkg -x "$package" "$into" || status=1; done || status=1
    rm -rf "$work"
    return $status
}

# The npm packages keeperd shares its locks with, exactly those of tests/interop/package-lock.json.
npm_packages() {
    local into=$PWD/.cache/interop
    # npm writes that file last.
    if [ -f "$into/node_modules/.package-lock.json" ] && cmp -s tests/interop/package-lock.json "$into/package-lock.json"; then
        return 0
    fi
    have node && have npm || return 1
    rm -rf "$into"
    mkdir -p "$into"
    cp tests/interop/package.json tests/interop/package-lock.json "$into"
    npm ci --prefix "$into" --ignore-scripts --no-audit --no-fund --loglevel error
}
