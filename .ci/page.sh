#!/usr/bin/env bash
# Fetches what the tests of the technician's page (cmd/internal/browser) run with:
#   a Chromium, and a font with Chinese characters (Debian's packages, where there is none);
#   axe-core (npm), which looks for what keeps people from using a page;
#   acorn (npm), which parses the page's script as an old browser does.
#
#   .ci/page.sh run CMD...    run CMD with SECRETFREE_AXE and SECRETFREE_ACORN (paths of scripts) set
#   .ci/page.sh install       only fetch what is needed
#
# What comes from npm goes to ${SECRETFREE_CACHE:-.cache in the checkout} and is checked against the sums below.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SECRETFREE_CACHE:-$(dirname "$here")/.cache}

axe_package=axe-core@4.14.1
axe_sha512=FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==
acorn_package=acorn@8.19.0
acorn_sha512=oJlA3XiRm7Cyk6qFD2Jn8ak9B7jSy0qy00ADO3+8dpT0LSjFihQYv4C02LFCSYJV3Q37xYwwRy5m+IpIiUzqWw==

axe=$cache/${axe_package/@/-}/axe.min.js
acorn=$cache/${acorn_package/@/-}/dist/acorn.js

fail() {
	echo "page.sh: $*" >&2
	exit 1
}

# package NAME@VERSION SHA512 FILE: fetches a package of npm once; FILE is what is wanted of it.
package() {
	[ -s "$3" ] && return
	command -v npm >/dev/null || fail "no npm: install Node.js, it fetches $1"
	local new sum
	new=$(mktemp -d -p "$cache")
	(cd "$new" && npm pack --silent "$1" >/dev/null) || fail "cannot fetch $1"
	sum=$(openssl dgst -sha512 -binary "$new"/*.tgz | base64 -w 0)
	[ "$sum" = "$2" ] || fail "$1 has the sum $sum, want $2: delete it and look who changed it"
	tar -xzf "$new"/*.tgz -C "$new"
	rm -rf "$cache/${1/@/-}"
	mv "$new/package" "$cache/${1/@/-}"
	rm -r "$new"
	[ -s "$3" ] || fail "$1 has no ${3##*/}"
}

browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

install_browser() {
	local want=()
	browser >/dev/null || want+=(chromium)
	command -v fc-list >/dev/null && [ -n "$(fc-list :lang=zh-cn)" ] || want+=(fontconfig fonts-wqy-microhei)
	[ ${#want[@]} -gt 0 ] || return 0
	local sudo=
	[ "$(id -u)" = 0 ] || sudo=sudo
	$sudo apt-get update -qq >&2 && $sudo apt-get install -y -qq --no-install-recommends "${want[@]}" >&2 ||
		fail "apt-get cannot install ${want[*]}: install a Chromium and a font with Chinese characters"
}

install_all() {
	install_browser
	package "$axe_package" "$axe_sha512" "$axe"
	package "$acorn_package" "$acorn_sha512" "$acorn"
}

mkdir -p "$cache"
[ -e "$cache/.gitignore" ] || echo '*' >"$cache/.gitignore"
case ${1-} in
run)
	shift
	[ $# -gt 0 ] || { echo "usage: .ci/page.sh run CMD..." >&2; exit 2; }
	install_all
	export SECRETFREE_AXE=$axe SECRETFREE_ACORN=$acorn
	exec "$@"
	;;
install)
	install_all
	;;
*)
	echo "usage: .ci/page.sh run CMD... | install" >&2
	exit 2
	;;
esac
