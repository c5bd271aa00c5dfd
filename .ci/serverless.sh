#!/usr/bin/env bash
# Fetches what the tests of cloud/deploy and cmd/issuer-lambda run against, none of which needs an account:
#   serverless-offline (npm), which plays API Gateway, and osls, the fork of serverless that starts it without a login;
#   cfn-lint and aws-sam-translator (pip), which check the template and turn it into plain CloudFormation;
#   boto3 and cryptography (pip), for the benchmark against a function in Python.
#
#   .ci/serverless.sh run CMD...    run CMD with SECRETFREE_SERVERLESS (a folder with node_modules) and SECRETFREE_PYTHON set
#   .ci/serverless.sh install       only fetch what is needed
#
# What is fetched goes to ${SECRETFREE_CACHE:-.cache in the checkout}. Needs npm and python3 with venv (installed with apt-get
# when missing).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SECRETFREE_CACHE:-$(dirname "$here")/.cache}

npm_packages=(osls@4.3.1 serverless-offline@14.8.2)
pip_packages=(cfn-lint==1.51.0 aws-sam-translator==1.110.0 boto3==1.43.11 cryptography==48.0.0)
# The name of a folder says what is in it: other versions go to another one.
serverless=$cache/serverless-$(echo "${npm_packages[@]}" | sha256sum | cut -c1-12)
venv=$cache/python-$(echo "${pip_packages[@]}" | sha256sum | cut -c1-12)

fail() {
	echo "serverless.sh: $*" >&2
	exit 1
}

install_serverless() {
	[ -d "$serverless/node_modules/serverless-offline" ] && return
	command -v npm >/dev/null || fail "no npm: install Node.js"
	local new
	new=$(mktemp -d -p "$cache")
	(cd "$new" && npm init -y >/dev/null && npm install --legacy-peer-deps --no-audit --no-fund --silent "${npm_packages[@]}" >&2) ||
		fail "cannot fetch ${npm_packages[*]}"
	rm -rf "$serverless"
	mv "$new" "$serverless"
}

# has PYTHON: whether all packages are there, in these versions
has() {
	"$1" - "${pip_packages[@]}" 2>/dev/null <<-'END'
		import sys
		from importlib.metadata import version
		sys.exit(any(version(name) != want for name, want in (package.split("==") for package in sys.argv[1:])))
	END
}

install_python() {
	if has python3; then # a machine that comes with them
		python=$(command -v python3)
		return
	fi
	python=$venv/bin/python
	[ -e "$venv/complete" ] && return
	python3 -c 'import ensurepip, venv' 2>/dev/null || {
		local sudo=
		[ "$(id -u)" = 0 ] || sudo=sudo
		$sudo apt-get update -qq >&2 && $sudo apt-get install -y -qq python3-venv >&2 || fail "no python3 with venv, and apt-get cannot install it"
	}
	rm -rf "$venv" # a venv cannot be moved, so it is made in place and marked at the end
	python3 -m venv "$venv" >&2
	"$venv/bin/pip" install --quiet --disable-pip-version-check "${pip_packages[@]}" >&2 || fail "cannot fetch ${pip_packages[*]}"
	touch "$venv/complete"
}

serverless_install() {
	mkdir -p "$cache"
	[ -e "$cache/.gitignore" ] || echo '*' >"$cache/.gitignore"
	install_serverless
	install_python
	export SECRETFREE_SERVERLESS=$serverless SECRETFREE_PYTHON=$python
}

case ${1-} in
run)
	shift
	[ $# -gt 0 ] || { echo "usage: .ci/serverless.sh run CMD..." >&2; exit 2; }
	serverless_install
	exec "$@"
	;;
install) serverless_install ;;
*)
	echo "usage: .ci/serverless.sh run CMD... | install" >&2
	exit 2
	;;
esac
