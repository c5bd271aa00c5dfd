#!/usr/bin/env bash
# Fetches the clients of EST (RFC 7030) that the issuer is tested with:
#   estclient of globalsign/est, built in a module of its own, because `go install` refuses its version;
#   pki of strongSwan (Debian), with the plugins that it needs for TLS and for keys on P-256.
#
#   .ci/est.sh run CMD...    run CMD with SECRETFREE_ESTCLIENT (a path) set and pki in the PATH
#   .ci/est.sh install       only fetch what is needed
#
# What is built goes to ${SECRETFREE_CACHE:-.cache in the checkout}. curl and openssl, the third client, are expected.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SECRETFREE_CACHE:-$(dirname "$here")/.cache}

est_version=v1.0.6
estclient=$cache/bin/estclient-$est_version

fail() {
	echo "est.sh: $*" >&2
	exit 1
}

install_estclient() {
	[ -x "$estclient" ] && return
	local new
	new=$(mktemp -d -p "$cache")
	(
		cd "$new"
		export GOFLAGS=
		go mod init est >/dev/null 2>&1
		go get -tool "github.com/globalsign/est/cmd/estclient@$est_version"
		go build -o estclient github.com/globalsign/est/cmd/estclient
	) >&2 || fail "cannot build estclient $est_version"
	mv "$new/estclient" "$estclient"
	rm -rf "$new"
}

install_pki() {
	command -v pki >/dev/null && return
	local sudo=
	[ "$(id -u)" = 0 ] || sudo=sudo
	$sudo apt-get update -qq >&2 && $sudo apt-get install -y -qq --no-install-recommends \
		strongswan-pki libstrongswan-standard-plugins libstrongswan-extra-plugins >&2 ||
		fail "no pki, and apt-get cannot install it: install strongSwan's pki with its plugins"
}

mkdir -p "$cache/bin"
[ -e "$cache/.gitignore" ] || echo '*' >"$cache/.gitignore"
case ${1-} in
run)
	shift
	[ $# -gt 0 ] || { echo "usage: .ci/est.sh run CMD..." >&2; exit 2; }
	install_estclient
	install_pki
	export SECRETFREE_ESTCLIENT=$estclient
	exec "$@"
	;;
install)
	install_estclient
	install_pki
	;;
*)
	echo "usage: .ci/est.sh run CMD... | install" >&2
	exit 2
	;;
esac
