#!/bin/sh
# What systemd says of the units, with the given executable in place of the installed one. Quiet when it has nothing to say.
set -eu
if ! command -v systemd-analyze >/dev/null; then
    echo "systemd-analyze is not installed: the units are not verified"
    exit 0
fi
here=$(dirname "$0")
copies=$(mktemp -d)
trap 'rm -rf "$copies"' EXIT
for unit in "$here"/*.service; do
    sed "s|^ExecStart=/opt/ckptd/bin/ckptd|ExecStart=$1|" "$unit" >"$copies/${unit##*/}"
done
# It exits with 0 when it only warns, of a misspelt key for example.
said=$(systemd-analyze verify --man=no "$copies"/*.service 2>&1) || said="$said
systemd-analyze verify failed"
if [ -n "$said" ]; then
    echo "$said"
    exit 1
fi
