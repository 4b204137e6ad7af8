#!/bin/sh
# Turns a fresh Debian root ($1) into the base image: the workload's user, public package
# sources, mount points. Runs on the build machine as mmdebstrap's customize hook.
set -eu
root=$1

# The workload's user. Its numbers are part of the contract with virtio-fs and the agent.
chroot "$root" groupadd --gid 1000 agent
chroot "$root" useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash agent
printf 'agent ALL=(ALL:ALL) NOPASSWD: ALL\n' >"$root/etc/sudoers.d/agent"
# sudo must find its host name without asking a resolver, and keep the proxy's variables.
cat >"$root/etc/sudoers.d/environment" <<'SUDO'
Defaults !fqdn
Defaults env_keep += "http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY all_proxy"
Defaults env_keep += "SSL_CERT_FILE CURL_CA_BUNDLE REQUESTS_CA_BUNDLE NODE_EXTRA_CA_CERTS GIT_SSL_CAINFO JAVA_TOOL_OPTIONS"
SUDO
chmod 0440 "$root/etc/sudoers.d/agent" "$root/etc/sudoers.d/environment"

# Public package sources: the build machine's own mirrors stay on the build machine.
rm -rf "$root/etc/apt/sources.list.d" "$root/etc/apt/sources.list" "$root/etc/apt/auth.conf.d"
mkdir -p "$root/etc/apt/sources.list.d" "$root/etc/apt/auth.conf.d"
domain=debian.org
for source in "debian bookworm" "debian bookworm-updates" "debian-security bookworm-security"; do
    printf 'deb https://deb.%s/%s main\n' "$domain" "$source"
done >"$root/etc/apt/sources.list"
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
# No background daemons start inside a sandbox: PID 1 is the agent.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"

# Identity is given at launch, never baked in.
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id"
mkdir -p "$root/usr/lib/sandbox"
mv "$root/etc/ssl/certs/ca-certificates.crt" "$root/usr/lib/sandbox/roots.pem"
# The agent writes these in memory, which is fast and leaves the private layer empty.
link() { rm -f "$root/$1" && ln -s "/run/sandbox/$2" "$root/$1"; }
link etc/hostname hostname
link etc/hosts hosts
link etc/machine-id machine-id
link etc/resolv.conf resolv.conf
link etc/ssl/certs/ca-certificates.crt ca-certificates.crt
link etc/sudoers.d/90-sandbox sudoers
mkdir -p "$root/usr/local/share/ca-certificates"
link usr/local/share/ca-certificates/sandbox.crt authority.crt

# Mount points, since the image itself is read-only.
for dir in dev proc sys run tmp base layer sandbox workspace mnt; do mkdir -p "$root/$dir"; done
chmod 1777 "$root/tmp"

# Every file gets one time stamp when packed, so byte code must not be checked against its source's.
chroot "$root" python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.11 \
    /usr/share/python3 >/dev/null || true

# What the image does not need: documentation, logs, caches, translations.
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/* \
    "$root"/usr/share/lintian "$root"/var/cache/* "$root"/var/lib/apt/lists/* "$root"/usr/share/gitweb
mkdir -p "$root/var/cache/apt/archives/partial" "$root/var/lib/apt/lists/partial"
find "$root/var/log" -type f -delete
