# What the commands of a document meet when a test runs them: our commands, folders below $ROOT in the place of those of the system, and
# instead of systemd functions that start and stop the daemons.
set -Eeuo pipefail
where=prelude
trap 'echo "$where: exit $?: $BASH_COMMAND" >&2' ERR
trap 'ended=$?; trap - ERR; set +e; kill $(jobs -p) 2>/dev/null; wait; exit $ended' EXIT
export no_proxy='*' NO_PROXY='*' PATH="$BIN:$PATH"
mkdir -p "$ROOT"/{etc/secretfree,var/lib,srv,media,mnt,tmp,dev/serial/by-id,dev/serial/by-path}

# A command reads its configuration from /etc if it is not told otherwise: here, from there.
ours() {
	local name=$1 daemon=${1/%ctl/d}
	shift
	if [ "$name ${1-}" = "stationd init" ]; then # what it would write there
		set -- "$@" --output "$ROOT/etc/secretfree/stationd.toml" --state-dir "$ROOT/var/lib/stationd" --listen "$LISTEN"
	elif [[ " $*" != *" --config"* && " $*" != *" --help"* && $(command "$name" --parse-only "$@") == *$'\n--config'* ]]; then
		set -- "$@" --config "$ROOT/etc/secretfree/$daemon.toml"
	fi
	command "$name" "$@"
}
stationd() { ours stationd "$@"; }
stationctl() { ours stationctl "$@"; }
issuerd() { ours issuerd "$@"; }
issuerctl() { ours issuerctl "$@"; }

sudo() {
	while [[ $1 == -* ]]; do shift 2; done
	"$@"
}

chown() { :; }

# There are no users of ours here.
install() {
	local words=()
	while [ $# -gt 0 ]; do
		case $1 in -o | -g) shift 2 ;; *) words+=("$1"); shift ;; esac
	done
	command install "${words[@]}"
}

# await FILE PATTERN: waits until a line of the file matches.
await() {
	local n=0
	until grep -qs -e "$2" "$1"; do
		[ $((n += 1)) -lt 600 ] || { echo "$where: $1 never had $2:" >&2; cat "$1" >&2; return 1; }
		sleep 0.05
	done
}

# passed: waits until a slot of the station shows a board that passed.
passed() {
	local n=0
	until curl -sS "http://$LISTEN/status" | grep -q '"state":"passed"'; do
		[ $((n += 1)) -lt 600 ] || { echo "$where: no board passed" >&2; curl -sS "http://$LISTEN/status" >&2; return 1; }
		sleep 0.05
	done
}

declare -A daemons=()

systemctl() {
	local verb=$1 name unit
	shift
	for unit in "$@"; do
		name=${unit%.service}
		case $verb:$unit in
		*:--now | *:*.timer | *:*.socket | disable:*) ;;
		enable:* | start:*)
			: >"$ROOT/$name.log"
			command "$name" --config "$ROOT/etc/secretfree/$name.toml" >>"$ROOT/$name.log" 2>&1 &
			daemons[$name]=$!
			await "$ROOT/$name.log" '"message":"ready"'
			;;
		stop:*)
			kill "${daemons[$name]}"
			wait "${daemons[$name]}"
			;;
		restart:*)
			systemctl stop "$name"
			systemctl start "$name"
			;;
		status:* | is-active:*) kill -0 "${daemons[$name]}" ;;
		*) echo "$where: this systemctl cannot $verb" >&2; return 1 ;;
		esac
	done
}

journalctl() { cat "$ROOT"/*.log; }

# a_station STATION: a running station of the SKU widgiot with one slot, a registry in /srv/registry, and a simulated board that passed: its key is
# board.pem, its id DEVICE.
a_station() {
	DEVICE=4d1f000a8e27b3c05a9e61f2d47788aa
	openssl ecparam -name prime256v1 -genkey -noout -out board.pem
	stationctl registry init "$ROOT/srv/registry" >/dev/null
	cat >"$ROOT/etc/secretfree/stationd.toml" <<END
station   = "$1"
sku       = "widgiot"
state_dir = "$ROOT/var/lib/stationd"
listen    = "$LISTEN"
[[slot]]
name    = "A"
port    = "$ROOT/dev/serial/by-path/a"
dialect = "ti-at"
[registry]
kind = "dir"
dir  = "$ROOT/srv/registry"
END
	printf '{"dialect": "ti-at", "device": "%s", "key_file": "%s"}' $DEVICE "$PWD/board.pem" >board.json
	systemctl start stationd
	command stationctl simulate --port "$ROOT/dev/serial/by-path/a" --description board.json >"$ROOT/simulate.log" 2>&1 &
	passed
}
