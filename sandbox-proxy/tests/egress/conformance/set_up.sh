#!/bin/sh
# Makes a Python 2.7 with the test suite of requirements.txt in the cache directory, once, and says where it is.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${SANDBOX_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sandbox}
suite=$cache/conformance-$(sha256sum "$here/requirements.txt" "$0" | sha256sum | cut -c1-16)

# Debian 11 was the last to have Python 2.7. Its packages are unpacked beside the system, and never installed in it.
packages='
aadf8b4b197335645b230c2839b4517aa444fd2e8f434e5438c48a18857988f7 o/openssl/libssl1.1_1.1.1w-0+deb11u1_amd64.deb
30ca89bfddae5fa6e0a2a044f22b6e50cd17c4bc6bc850c579819aeab7101f0f libf/libffi/libffi7_3.3-6_amd64.deb
85833c92314011b89bbead6f9a5a7a360b5ee4f9b95e001225afead4ebf9f7d3 p/python2.7/libpython2.7-minimal_2.7.18-8+deb11u1_amd64.deb
3e627d6d8992b853e000b8a4c09dda613fb767cdb711a2eac20ebc9f867b593c p/python2.7/libpython2.7-stdlib_2.7.18-8+deb11u1_amd64.deb
44f0cdc1a343303d31c55fcb3a6402cfe326adf749ec30e375e6e0c0c5f7c1f7 p/python2.7/python2.7-minimal_2.7.18-8+deb11u1_amd64.deb
'

# From wherever this machine has its own packages: releases are kept side by side there.
mirrors=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sort -u)

fetch() {
    for mirror in $mirrors; do
        if curl -fsSL --retry 3 -o "$suite/package.deb" "${mirror%/}/pool/main/$2"; then
            echo "$1  $suite/package.deb" | sha256sum --check --quiet >&2
            return
        fi
    done
    echo "$2 is on no mirror of this machine" >&2
    return 1
}

if [ "$(dpkg --print-architecture)" != amd64 ]; then
    echo 'the test suite for WebSockets runs on amd64 only' >&2
    exit 1
fi
mkdir -p "$cache"
exec 9>"$suite.lock"
flock 9
if [ ! -e "$suite/complete" ]; then
    rm -rf "$suite"
    mkdir "$suite"
    echo "$packages" | while read -r sum path; do
        [ -n "$sum" ] || continue
        fetch "$sum" "$path"
        dpkg -x "$suite/package.deb" "$suite"
        rm "$suite/package.deb"
    done
    cat >"$suite/python" <<'END'
#!/bin/sh
root=$(dirname "$0")/usr
LD_LIBRARY_PATH=$root/lib/x86_64-linux-gnu PYTHONHOME=$root exec "$root/bin/python2.7" "$@"
END
    chmod +x "$suite/python"
    # The last pip for Python 2.7 comes by one of today; its own roots are old, too.
    python3 -m venv "$suite/today" >&2
    "$suite/today/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile \
        --target "$suite/usr/lib/python2.7/dist-packages" pip==20.3.4 setuptools==44.1.1 wheel==0.37.1 >&2
    PIP_CERT=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt} \
        "$suite/python" -m pip install --quiet --disable-pip-version-check --no-python-version-warning \
        --no-warn-script-location --no-deps -r "$here/requirements.txt" >&2
    rm -rf "$suite/today"
    # Whatever it does not find to import, it does not find here.
    "$suite/python" -W ignore "$suite/usr/local/bin/wstest" --autobahnversion >&2
    touch "$suite/complete"
fi
echo "$suite"
