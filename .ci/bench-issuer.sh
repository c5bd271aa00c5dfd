#!/usr/bin/env bash
# How fast an issuer is beside others, as ratios taken in one run: a bare handler, cfssl, step-ca without and with its
# database, and for the start of the function in AWS Lambda one in Python. It builds the other issuers once (step-ca takes
# minutes) into ${SECRETFREE_CACHE:-.cache in the checkout}; so it is no step of .ci/run.
#
#   .ci/bench-issuer.sh [ROUNDS]     60 rounds if not told; of each ratio the median counts
#   .ci/bench-issuer.sh install      only build the others
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${SECRETFREE_CACHE:-$PWD/.cache}
cfssl_version=v1.6.5
step_ca_version=v0.30.2

# tool NAME MODULE VERSION: builds a Go tool once, and prints its path.
tool() {
	local path=$cache/bin/$1-$3 new
	if [ ! -x "$path" ]; then
		mkdir -p "$cache/bin"
		new=$(mktemp -d -p "$cache")
		(cd / && GOFLAGS= CGO_ENABLED=0 GOBIN=$new go install "$2@$3") >&2
		mv "$new/$1" "$path"
		rmdir "$new"
	fi
	echo "$path"
}

SECRETFREE_CFSSL=$(tool cfssl github.com/cloudflare/cfssl/cmd/cfssl "$cfssl_version")
SECRETFREE_STEP_CA=$(tool step-ca github.com/smallstep/certificates/cmd/step-ca "$step_ca_version")
export SECRETFREE_CFSSL SECRETFREE_STEP_CA
[ "${1-}" != install ] || exit 0

go test -run '^$' -bench 'HTTP' -benchtime "${1:-60}x" ./cloud/issuer/server
# Slow to start is what it measures, and that it does alone.
go test -run '^$' -bench 'Start' -benchtime 20x ./cmd/issuer-lambda
