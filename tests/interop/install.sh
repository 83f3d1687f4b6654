#!/usr/bin/env bash
# Gets Postfix and Exim for the tests beside this file, and strace for one of SQLite. For root on Debian and its like, with
# apt; elsewhere it does nothing, and the tests are skipped. May be run again.
#
# The two mail servers exclude each other. So Postfix is installed, unless another mail server is (which is then left alone), and
# Exim is only unpacked into a folder, with the libraries that it lacks. No mail service is set up or started by this.
set -euo pipefail

exim=${MAILSTROM_INTEROP_EXIM:-/var/tmp/mailstrom-interop/exim}

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "not root, or not a system with apt: nothing was installed, the tests that need it will be skipped"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
updated=
update() { [ -n "$updated" ] || { apt-get update -qq && updated=yes; }; }

if ! command -v strace >/dev/null; then
  update
  apt-get install -qq -y --no-install-recommends strace </dev/null
fi

if [ ! -x /usr/sbin/postfix ]; then
  if dpkg-query -W -f '${db:Status-Abbrev} ${Provides}\n' | grep -q '^ii .*mail-transport-agent'; then
    echo "another mail server is installed, so Postfix is not"
  else
    update
    # Nothing is to be started by the installation; the tests start an instance of their own.
    policy=/usr/sbin/policy-rc.d
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }
    echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections
    apt-get install -qq -y --no-install-recommends postfix </dev/null
  fi
fi

# Exim looks its user up by name.
getent passwd Debian-exim >/dev/null || useradd --system --user-group --no-create-home --shell /usr/sbin/nologin Debian-exim

if [ ! -x "$exim/exim" ] && [ ! -x /usr/sbin/exim4 ]; then
  update
  rm -rf "$exim"
  mkdir -p "$exim/root"
  chmod 755 "$(dirname "$exim")" "$exim"
  unpack() {
    mkdir -p "$exim/debs"
    (cd "$exim/debs" && apt-get download -qq -o APT::Sandbox::User=root "$@")
    for package in "$exim"/debs/*.deb; do dpkg-deb -x "$package" "$exim/root"; done
    rm -r "$exim/debs"
  }
  unpack exim4-daemon-light
  program=$exim/root/usr/sbin/exim4
  libraries=$exim/root/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -print-multiarch 2>/dev/null || echo "$(uname -m)-linux-gnu")
  lacks() { LD_LIBRARY_PATH=$libraries ldd "$program" | sed -n 's/^\s*\(\S*\) => not found$/\1/p'; }
  if [ -n "$(lacks)" ]; then
    # Of the packages that it depends on, those that are not installed; theirs in turn, twice is deep enough.
    needed=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
      exim4-daemon-light | sed -n 's/^\(lib[^: ]*\)$/\1/p' | sort -u)
    for package in $needed; do
      dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || unpack "$package"
    done
  fi
  if [ -n "$(lacks)" ]; then
    echo "Exim lacks $(lacks | tr '\n' ' ')and will not be used"
    rm -rf "$exim"
    exit 1
  fi
  # Exim starts itself anew without most of its environment: through this script it finds its libraries again.
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libraries" "$program" >"$exim/exim"
  chmod 755 "$exim/exim"
fi
echo "Postfix: $(postconf -h mail_version 2>/dev/null || echo none)"
if [ -x "$exim/exim" ]; then "$exim/exim" -bV 2>/dev/null | sed -n 1p || true; fi
