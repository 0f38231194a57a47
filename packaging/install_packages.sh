#!/bin/sh
# Installs the Debian packages of packaging/apt.txt that are missing. As root, or with sudo.
set -eu

list=$(dirname "$0")/apt.txt
wanted=$(sed 's/#.*//' "$list")
missing=
for package in $wanted; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "These Debian packages are missing:$missing" >&2
    echo "Install them as root (apt-get install$missing), or install sudo, and run this again." >&2
    exit 1
  fi
  sudo=sudo
fi
echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of words
$sudo apt-get update -q
# shellcheck disable=SC2086
$sudo apt-get install -q -y --no-install-recommends $missing
