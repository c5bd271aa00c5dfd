#!/usr/bin/env bash
# Makes the Debian packages of a version: secretfree-station and secretfree-issuer, of static programs, for amd64, arm64 and armhf (ARMv7).
# The same commit gives the same bytes, in whatever folder and whenever it is built.
#
#   .ci/package.sh VERSION [OUT]     into the folder OUT (dist), as <package>_<version>_<architecture>.deb; ARCHES="amd64" makes only those
#   .ci/package.sh check             builds this commit in two folders at two times, and compares; tests what is in the packages
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export SECRETFREE_CACHE=${SECRETFREE_CACHE:-$PWD/.cache}
nfpm_version=v2.48.0
maintainer="The secretfree maintainers <maintainers@secretfree.invalid>"

# packer prints the path of nfpm, which it installs once.
packer() {
	local path=$SECRETFREE_CACHE/bin/nfpm-$nfpm_version new
	if [ ! -x "$path" ]; then
		mkdir -p "$SECRETFREE_CACHE/bin"
		new=$(mktemp -d -p "$SECRETFREE_CACHE")
		(cd / && GOTOOLCHAIN=auto GOFLAGS= GOBIN=$new go install "github.com/goreleaser/nfpm/v2/cmd/nfpm@$nfpm_version") >&2
		mv "$new/nfpm" "$path"
		rmdir "$new"
	fi
	echo "$path"
}

# build ARCHITECTURE DIR COMMAND...: the static programs, with the commit in them and no path of this machine.
build() {
	local arch=$1 dir=$2 goarch=$1 command
	shift 2
	[ "$arch" = armhf ] && goarch=arm
	for command in "$@"; do
		CGO_ENABLED=0 GOOS=linux GOARCH=$goarch GOARM=7 GOAMD64=v1 GOFLAGS= go build -trimpath -buildvcs=true -ldflags=-s -o "$dir/$command" "./cmd/$command"
	done
}

# licences COMMAND...: what the authors of the linked modules want to go with their work.
licences() {
	local path version dir file
	printf 'Format: text\n\nThe programs of this package are linked with these works.\n'
	printf '\n==== The Go standard library\n\n'
	cat "$(go env GOROOT)/LICENSE"
	go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' "${@/#/./cmd/}" | sort -u | while read -r path version dir; do
		for file in "$dir"/LICEN[CS]E* "$dir"/COPYING* "$dir"/NOTICE*; do
			[ -f "$file" ] || continue
			printf '\n==== %s %s: %s\n\n' "$path" "$version" "${file##*/}"
			cat "$file"
		done
	done
}

# package NAME DAEMON TOOL SUMMARY DETAIL NEXT HOLDS: what all architectures have alike is staged in $work/NAME, then each is packed.
package() {
	local name=$1 daemon=$2 tool=$3 next=$6 holds=$7 tree=$work/$1/tree doc unit units=() arch script
	doc=$tree/usr/share/doc/$name
	install -d "$tree/usr/bin" "$doc/examples" "$tree/usr/share/man/man8" "$tree/usr/share/man/man1"
	for unit in "systemd/$daemon".{service,socket} "systemd/$daemon"-*.{service,timer}; do
		install -D -m 644 -t "$tree/usr/lib/systemd/system" "$unit"
		units+=("${unit##*/}")
	done
	install -D -m 644 -t "$tree/usr/lib/sysusers.d" "systemd/sysusers.d/$name.conf"
	install -D -m 644 -t "$tree/usr/lib/tmpfiles.d" "systemd/tmpfiles.d/$name.conf"
	if [ "$daemon" = stationd ]; then
		install -D -m 644 -t "$tree/usr/lib/udev/rules.d" systemd/udev/70-secretfree.rules
		if [ -d systemd/monitoring ]; then
			find systemd/monitoring -type f ! -name '*.go' -exec install -D -m 644 -t "$tree/usr/share/secretfree/monitoring" {} +
		fi
	fi
	install -m 644 "systemd/$daemon.toml" "$doc/examples/"
	install -m 644 README.md "$doc/"
	if [ -e systemd/README.md ]; then install -m 644 systemd/README.md "$doc/README.systemd.md"; fi
	licences "$daemon" "$tool" >"$doc/copyright"
	printf '%s (%s) unstable; urgency=medium\n\n  * Made of commit %s.\n\n -- %s  %s\n' "$name" "$version" "$(git rev-parse HEAD)" "$maintainer" \
		"$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
	"$work/host/$daemon" --man | gzip -9n >"$tree/usr/share/man/man8/$daemon.8.gz"
	"$work/host/$tool" --man | gzip -9n >"$tree/usr/share/man/man1/$tool.1.gz"
	for script in postinst prerm postrm; do
		sed -e "s|@package@|$name|g; s|@daemon@|$daemon|g; s|@units@|${units[*]}|g; s|@next@|$next|g; s|@holds@|$holds|g" "systemd/deb/$script" >"$work/$name/$script"
		! grep -n '@[a-z]*@' "$work/$name/$script"
	done
	install -m 644 "systemd/default/$daemon" "$work/$name/default"
	for arch in $arches; do
		install -m 755 "$work/$arch/$daemon" "$work/$arch/$tool" "$tree/usr/bin/"
		find "$work/$name" -type d -exec chmod 755 {} + -o -path '*/usr/bin/*' -o -type f -exec chmod 644 {} +
		find "$work/$name" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
		(cd "$work/$name" && PACKAGE=$name DAEMON=$daemon VERSION=$version ARCH=${arch/armhf/arm7} MAINTAINER=$maintainer SUMMARY=$4 DETAIL=$5 \
			"$nfpm" package --config "$root/systemd/deb/nfpm.yaml" --packager deb --target "$out/${name}_${version}_$arch.deb") >/dev/null
		echo "$out/${name}_${version}_$arch.deb"
	done
}

make_packages() {
	version=$1
	[[ $version =~ ^[0-9][0-9A-Za-z.+~-]*$ ]] || { echo "$version is no version: write it as 1.2.3" >&2; exit 2; }
	mkdir -p "$2"
	out=$(cd "$2" && pwd) root=$PWD arches=${ARCHES:-amd64 arm64 armhf}
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	umask 022
	nfpm=$(packer)
	SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
	export SOURCE_DATE_EPOCH
	build "$(go env GOHOSTARCH)" "$work/host" stationd stationctl issuerd issuerctl # they write their manual pages
	for arch in $arches; do
		build "$arch" "$work/$arch" stationd stationctl issuerd issuerctl
	done
	package secretfree-station stationd stationctl "puts the hardware identities of boards on record" \
		$'The station of a test fixture: reads boards over serial ports, keeps a\nsigned journal of them, and delivers it to a registry.' \
		"write a configuration with: stationd init" "the journal of what has passed, and the signing key of this station"
	package secretfree-issuer issuerd issuerctl "gives certificates to boards that are on record" \
		$'The issuer checks the request of a board against the signed record that\na station made of it, and has a CA sign.' \
		"write /etc/secretfree/issuerd.toml; there is a sample in /usr/share/doc/secretfree-issuer/examples" "the keys of a CA, and what was issued"
}

check() {
	local dir place
	dir=$(mktemp -d)
	trap "rm -rf '$dir'" EXIT
	for place in one another/and/longer; do
		git clone -q "$PWD" "$dir/$place"
		(cd "$dir/$place" && git checkout -q "$(git -C "$OLDPWD" rev-parse HEAD)" && ARCHES=${ARCHES:-amd64} .ci/package.sh 0.0.1 "$dir/out-${place%%/*}")
	done
	diff -r "$dir/out-one" "$dir/out-another"
	SECRETFREE_DEBS=$dir/out-one CI=true go test ./cmd -count=1 -run 'TestPackages' -v
}

case ${1:-} in
check) check ;;
"" | -*) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
*) make_packages "$1" "${2:-dist}" ;;
esac
