#!/usr/bin/env bash
# Installs, boots, breaks, upgrades, downgrades, removes and purges the Debian packages in a container with a systemd of its own, as factory IT
# does on a machine, with a simulated board inside. It needs root and some minutes, so it is no part of .ci/run. It says what it looks at, and
# how long each part takes; the first thing that is not as it should be ends it, with the log.
#
#   .ci/nspawn.sh            makes the packages of two versions, and goes through all of it
#   DEBS=DIR .ci/nspawn.sh   with packages that are there: versions 0.0.1 (the older program) and 0.0.2, by .ci/package.sh
#
# The older version, to which it goes back and from which it comes, is of the first commit that could make packages; where this is that commit, or
# its history is not here, it is of this commit too, which is said.
#
# What a container cannot show: udev (it has no devices of its own), and a real serial port. The simulated board is on a
# pseudo-terminal, which DevicePolicy=closed allows by itself.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export SECRETFREE_CACHE=${SECRETFREE_CACHE:-$PWD/.cache}
release=bookworm old=0.0.1 new=0.0.2 device=00112233445566778899aabbccddeeff

if [ "$(id -u)" != 0 ]; then
	echo "a container with a systemd of its own needs root: sudo .ci/nspawn.sh" >&2
	exit 2
fi
for tool in systemd-nspawn debootstrap nsenter dpkg openssl; do
	command -v "$tool" >/dev/null || { echo "there is no $tool: apt-get install systemd-container debootstrap util-linux openssl" >&2; exit 2; }
done

# Whatever is mounted for the container, and whatever of it is left when this is killed, is seen by nobody else, and goes with this process.
if [ "${SECRETFREE_UNSHARED:-}" != "$$" ]; then
	exec unshare --mount --propagation private sh -c 'SECRETFREE_UNSHARED=$$ exec "$0" "$@"' "$PWD/.ci/nspawn.sh" "$@"
fi

# told COMMAND: the one line of IT's guide that begins so: what is run here is what is written there.
told() {
	local lines
	lines=$(grep -e "^$1" systemd/README.md | sed 's/ *#.*//')
	[ -n "$lines" ] && [ "$(wc -l <<<"$lines")" = 1 ] || { echo "systemd/README.md has no line, or more than one, that begins with: $1" >&2; exit 1; }
	echo "$lines"
}
init=$(told "stationd init --sku") simulate=$(told "stationctl simulate")
port=$(sed -n 's/.* --port A=\([^ ]*\).*/\1/p' <<<"$init") shown=$(sed -n 's/.* --device \([0-9a-f]*\).*/\1/p' <<<"$simulate")
fstab=$(told "LABEL=SECRETFREE")

arch=$(dpkg --print-architecture)
packages=systemd,systemd-sysv,udev,dbus,procps,ca-certificates,curl
base=$SECRETFREE_CACHE/nspawn-$release-$arch-$(cksum <<<"$packages" | cut -d ' ' -f 1)
work=$(mktemp -d)
machine=$work/machine nspawn= leader= began=

# The container.

# inside COMMAND...: runs a command in the container, as its root.
inside() {
	nsenter -t "$leader" -m -u -i -n -p -C -r -w env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
		DEBIAN_FRONTEND=noninteractive "$@"
}
station() { inside runuser -u stationd -- "$@"; }

boot() {
	# A network of its own has no address but loopback, so that no port of this machine is in the way, and nothing is fetched.
	# With control groups of version 2 and bpf, the container's systemd enforces DevicePolicy= itself.
	SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --system-call-filter=bpf --quiet --directory="$machine" --boot --register=no --keep-unit --machine="secretfree-$$" --private-network \
		--bind-ro="$DEBS:/debs" --console=pipe </dev/null >"$work/console" 2>&1 &
	nspawn=$!
	await 60 "the container boots" booted
}
booted() {
	leader=$(pgrep -P "$nspawn" | head -n 1) && [ -n "$leader" ] && case $(inside systemctl is-system-running 2>/dev/null) in running | degraded) ;; *) false ;; esac
}

finish() {
	local code=$?
	if [ "$code" != 0 ] && [ -n "$leader" ]; then
		{
			echo "== it ended with $code; the last of the log:"
			inside journalctl --no-pager -o short-monotonic -n 3000 | grep -v ' 0x\|+0x\|gp=0x\|(0x' | tail -n 60 || tail -n 40 "$work/console"
			inside curl -s -m 5 http://127.0.0.1:8080/status || true
		} >&2
	fi
	if [ -n "$nspawn" ] && kill -0 "$nspawn" 2>/dev/null; then
		[ -z "$leader" ] || inside systemctl poweroff --force >/dev/null 2>&1 || true
		for _ in $(seq 50); do kill -0 "$nspawn" 2>/dev/null || break; sleep 0.2; done
		kill -KILL "$nspawn" 2>/dev/null || true
	fi
	rm -rf "$work"
	exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# What is looked at.

now() { date +%s%3N; }
seconds() { echo "$(($1 / 1000)).$(($1 % 1000 / 100))"; }
part() {
	[ -z "$began" ] || echo "   ($(seconds $(($(now) - began))) s)"
	began=$(now)
	[ $# = 0 ] || echo "== $1"
}
# see WHAT COMMAND...: this is so.
see() {
	local what=$1
	shift
	"$@" >"$work/seen" 2>&1 || { echo "NOT SO: $what ($*)" >&2; cat "$work/seen" >&2; exit 1; }
	echo "   $what"
}
# await SECONDS WHAT COMMAND...: this comes to be so.
await() {
	local limit=$(($(now) + $1 * 1000)) what=$2 start
	start=$(now)
	shift 2
	until "$@" >"$work/seen" 2>&1; do
		[ "$(now)" -lt "$limit" ] || { echo "NOT SO in time: $what ($*)" >&2; cat "$work/seen" >&2; exit 1; }
		sleep 0.1
	done
	echo "   $what, after $(seconds $(($(now) - start))) s"
}
fails() { ! "$@"; }
contains() { # TEXT COMMAND...: it succeeds, and what it writes has TEXT in it
	local text=$1
	shift
	"$@" >"$work/output" 2>&1 && grep -qF -e "$text" "$work/output" || { cat "$work/output"; return 1; }
}
status() { contains "$1" inside curl -s -m 5 http://127.0.0.1:8080/status; }
property() { inside systemctl show --property="$2" --value "$1"; }
mode() { inside stat -c %a "$1"; }
is() { local want=$1; shift; [ "$("$@")" = "$want" ]; }
active() { is active property "$1" ActiveState; }
logged() { contains "$1" inside journalctl --no-pager -o cat -u stationd; }
count() { station stationctl spool list --json | grep -c '"kind":"record"' || true; }

# board NAME: a simulated board in the port that the guide names, until unplug NAME. The board "same" is always the same one, others are new ones; "line" is one new
# board after the other.
simulator=stationctl
board() {
	local how="--dialect ti-csr"
	[ "$1" != line ] || how="$how --boards 0 --stay 3s --gap 1s"
	[ "$1" != same ] || how="--description /run/boards/same.json"
	inside systemd-run --quiet --unit="board-$1" --collect $simulator simulate --port "$port" $how
}
unplug() { inside systemctl stop "board-$1"; }

exposure() {
	local level
	level=$(inside systemd-analyze security --no-pager "$1" | sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p')
	echo "exposure of $1: $level"
	awk -v l="$level" 'BEGIN { exit !(l != "" && l <= 2.0) }'
}

# prepare makes the board that is always the same.
prepare() {
	inside install -d -m 755 /run/boards
	inside tee /run/boards/same.key >/dev/null <"$work/board.key"
	inside tee /run/boards/same.json >/dev/null <<<'{"dialect": "ti-csr", "device": "'$device'", "key_file": "/run/boards/same.key"}'
}

# Before it begins.

if [ ! -d "$base" ]; then
	rm -rf "$base.new" # a Debian of these packages, without recommends; made once
	mkdir -p "$SECRETFREE_CACHE"
	debootstrap --variant=minbase --include="$packages" "$release" "$base.new" >"$work/debootstrap" || { tail "$work/debootstrap" >&2; exit 1; }
	mv "$base.new" "$base"
fi
if [ -z "${DEBS:-}" ]; then
	DEBS=$work/debs
	first=$(git log --diff-filter=A --format=%H -- .ci/package.sh | tail -n 1)
	if [ -n "$first" ] && [ "$first" != "$(git rev-parse HEAD)" ]; then
		git clone -q "$PWD" "$work/old"
		(cd "$work/old" && git checkout -q "$first")
		echo "the older version is of $(git log -1 --format='%h, %cs: %s' "$first")"
	else
		git clone -q "$PWD" "$work/old"
		echo "THERE IS NO OLDER COMMIT THAT MAKES PACKAGES: upgrade and downgrade are of the same program under two numbers" >&2
	fi
	(cd "$work/old" && ARCHES=$arch .ci/package.sh "$old" "$DEBS")
	ARCHES=$arch .ci/package.sh "$new" "$DEBS"
fi
DEBS=$(cd "$DEBS" && pwd)
cp -a --reflink=auto "$base" "$machine"
openssl ecparam -name prime256v1 -genkey -noout -out "$work/board.key" 2>/dev/null
older=/debs/secretfree-station_${old}_$arch.deb package=/debs/secretfree-station_${new}_$arch.deb issuer=/debs/secretfree-issuer_${new}_$arch.deb

part "a clean machine boots"
boot
prepare

part "a new user: from the package to PASS"
typed=$(now)
see "apt install $package" inside apt-get install -y -q --no-install-recommends "$package"
installed=$(now)
see "nothing starts unconfigured: it is not enabled" is disabled property stationd.service UnitFileState
see "and it is not running" is inactive property stationd.service ActiveState
see "who starts it all the same is told" fails inside systemctl start stationd
see "with the reason, and what to do" logged "there is no configuration /etc/secretfree/stationd.toml yet: run stationd init"
see "once, and not every two seconds" is failed property stationd.service ActiveState
see "nothing started it again" is 0 property stationd.service NRestarts
initial=$(now)
see "$init" inside $init
see "everybody may read the configuration" is 644 mode /etc/secretfree/stationd.toml
see "systemctl enable --now stationd" inside systemctl enable --now stationd
started=$(now)
see "stationctl status, of anybody" inside setpriv --reuid=65534 --regid=65534 --clear-groups stationctl status
see "$simulate" inside systemd-run --quiet --unit=board-shown --collect $simulate
await 30 "the page shows PASS" status '"slots":[{"name":"A","state":"passed","device":"'$shown'"'
passed=$(now)
await 30 "it is delivered: nothing waits" status '"pending":0'
see "it is in the registry" inside test -e /srv/registry/items/$shown.json
delivered=$(now)
see "it is in the journal" test "$(count)" = 1
see "the page is there" contains '<html' inside curl -s -m 5 http://127.0.0.1:8080/
echo "   machine time of a new user: $(seconds $((delivered - typed - (initial - installed)))) s, of which apt install $(seconds $((installed - typed))), init and start" \
	"$(seconds $((started - initial))), until PASS $(seconds $((passed - started)))"

part "the service as systemd has it"
see "it is active" active stationd.service
see "it has told systemd that it is ready (notify)" is notify property stationd.service Type
see "exposure at most 2.0" exposure stationd.service
cat "$work/seen"
see "it runs as stationd" is stationd property stationd.service User
see "it holds no capability" contains 'CapEff:	0000000000000000' inside sh -c 'cat /proc/$(systemctl show -P MainPID stationd)/status'
see "DevicePolicy= is in force here, and the board was read under it" fails inside systemd-run --quiet --wait --collect -p DevicePolicy=strict true
see "its state is its own" contains '700 stationd' inside stat -c '%a %U' /var/lib/stationd
see "nobody else reads its key" fails inside setpriv --reuid=65534 --regid=65534 --clear-groups cat /var/lib/stationd/station.key
inside cat /var/lib/stationd/station.pub >"$work/station.pub"
unplug shown
see "the folders of the simulated port are gone again" fails inside test -e "$(dirname "$port")"
await 15 "the slot is free again" status '"slots":[{"name":"A","state":"absent"'

part "who holds a port is told"
inside systemctl stop stationd
see "a board is plugged in" board held
await 10 "its port is there" inside test -e "$port"
inside systemd-run --quiet --unit=holder --uid=stationd --collect flock "$port" sleep 300
await 10 "another program has the port" fails station flock -n "$port" true
inside systemctl start stationd
await 20 "the page names the program" status 'flock (process'
inside systemctl stop holder
await 30 "when it lets go, the board passes" status '"slots":[{"name":"A","state":"passed"'
unplug held

part "a hanging process: the watchdog"
see "a board is plugged in" board same
await 30 "it passes" status '"slots":[{"name":"A","state":"passed"'
before=$(property stationd.service MainPID) had=$(count)
inside sh -c "kill -STOP $before"
restarted() { local pid; pid=$(property stationd.service MainPID) && [ "$pid" != 0 ] && [ "$pid" != "$before" ] && active stationd.service; }
await 90 "kill -STOP: the watchdog has it started again" restarted
see "systemd says why" contains "watchdog" inside journalctl --no-pager -o cat -u stationd
# A pseudo-terminal, of which the simulation has an end too, stays exclusive to the process that was killed; a port does not.
unplug same
see "the same board is plugged in" board same
await 30 "it passes again" status '"slots":[{"name":"A","state":"passed"'
see "the records are still there, and none is new" test "$(count)" = "$had"
unplug same

part "a full disk"
inside systemctl stop stationd
inside sh -c 'cp -a /var/lib/stationd /run/kept && mount -t tmpfs -o size=64m,mode=700 tmpfs /var/lib/stationd && cp -a /run/kept/. /var/lib/stationd/ && chown stationd: /var/lib/stationd'
inside systemctl start stationd
inside sh -c 'cat /dev/zero >/var/lib/stationd/ballast' >/dev/null 2>&1 || true
see "boards are plugged in, one after the other" board line
await 60 "they fail" status '"reason":"disk-full"'
see "the page says why, and whom to call" contains '"urge' inside curl -s -m 5 http://127.0.0.1:8080/status
inside rm /var/lib/stationd/ballast
await 60 "there is room again: they pass" status '"slots":[{"name":"A","state":"passed"'
unplug line
inside systemctl stop stationd
inside sh -c 'rm -rf /run/kept && cp -a /var/lib/stationd /run/kept && umount /var/lib/stationd && cp -a /run/kept/. /var/lib/stationd/'
inside systemctl start stationd

part "a broken configuration"
before=$(property stationd.service MainPID)
inside cp -a /etc/secretfree/stationd.toml /etc/secretfree/good.toml
inside sh -c 'echo nonsense = 1 >>/etc/secretfree/stationd.toml'
see "the check refuses it, and names it" contains nonsense inside sh -c '! stationd --check 2>&1'
see "the old one goes on in the same process" is "$before" property stationd.service MainPID
see "a board is plugged in" board broken
await 30 "it passes" status '"slots":[{"name":"A","state":"passed"'
inside mv /etc/secretfree/good.toml /etc/secretfree/stationd.toml
see "the good one is taken" inside sh -c "stationd --check && systemctl restart stationd"
unplug broken

part "a corrupted index"
had=$(count)
inside systemctl stop stationd
inside sh -c 'dd if=/dev/urandom of=/var/lib/stationd/index.bbolt bs=4096 count=8 conv=notrunc status=none'
see "it starts" inside systemctl start stationd
see "the log says that the index is rebuilt" logged "the index is rebuilt from the journal"
see "the records are there" test "$(count)" = "$had"
see "a board that was read before the damage is plugged in" board same
await 30 "it passes" status '"slots":[{"name":"A","state":"passed","device":"'$device'"'
see "it was known: nothing is added" test "$(count)" = "$had"
unplug same
see "the journal is whole" station stationctl spool verify --key /var/lib/stationd/station.pub

part "the address is systemd's: stationd.socket"
inside systemctl stop stationd
see "systemctl enable --now stationd.socket" inside systemctl enable --now stationd.socket
see "the service takes it" inside systemctl start stationd
see "the page answers" status '"station"'
inside systemctl stop stationd
see "who asks while it is stopped waits, and is answered" status '"station"'
inside systemctl disable --quiet --now stationd.socket
inside systemctl restart stationd

part "the timers"
see "reconcile: the journal and the registry say the same" inside systemctl start stationd-reconcile.service
inside mv /srv/registry/items/$device.json /run/item.json
see "they do not: the unit fails" fails inside systemctl start stationd-reconcile.service
see "systemctl --failed shows it" contains stationd-reconcile inside systemctl --failed --no-legend
inside mv /run/item.json /srv/registry/items/$device.json
inside systemctl reset-failed
see "systemctl enable --now stationd-export.timer" inside systemctl enable --now stationd-export.timer
see "export without a stick: nothing happens" inside systemctl start stationd-export.service
see "and it says so" is no property stationd-export.service ConditionResult
see "systemctl --failed shows nothing" fails inside sh -c 'systemctl --failed --no-legend | grep stationd'
# There are no block devices here: a tmpfs in the place of the stick, by the same line of /etc/fstab, and a name among the labels.
inside tee -a /etc/fstab >/dev/null <<<"$(sed 's/^LABEL=SECRETFREE \([^ ]*\) vfat/tmpfs \1 tmpfs/; s/x-systemd[^,]*,//; s/umask=077/mode=700/' <<<"$fstab")"
inside sh -c "mkdir -p /media/secretfree /dev/disk/by-label && systemctl daemon-reload && touch /dev/disk/by-label/SECRETFREE"
inside cp -a /etc/secretfree/stationd.toml /etc/secretfree/good.toml
inside sed -i 's/^kind *= .*/kind = "none"/; s/^dir *= .*//' /etc/secretfree/stationd.toml
inside systemctl restart stationd
see "without a registry, a board is plugged in" board carried
await 30 "it passes" status '"slots":[{"name":"A","state":"passed"'
see "export with a stick, which it mounts" inside systemctl start stationd-export.service
see "it is mounted" inside mountpoint -q /media/secretfree
see "the record is on the stick" contains '"records":1' inside journalctl --no-pager -o cat -u stationd-export
inside sh -c 'systemctl stop /media/secretfree && rm /dev/disk/by-label/SECRETFREE'
see "it is pulled: nothing happens" inside systemctl start stationd-export.service
inside systemctl disable --quiet --now stationd-export.timer
inside mv /etc/secretfree/good.toml /etc/secretfree/stationd.toml
unplug carried
inside systemctl restart stationd
await 30 "the registry is back: it is delivered" status '"pending":0'

part "downgrade"
inside cp /usr/bin/stationctl /root/stationctl && simulator=/root/stationctl # the boards stay those of now
inside sh -c 'echo AWS_PROFILE=line3 >>/etc/default/stationd'
had=$(count) before=$(property stationd.service MainPID)
see "apt install --allow-downgrades $older" inside apt-get install -y -q --no-install-recommends --allow-downgrades "$older"
see "it runs, as a new process" restarted
see "the records are there" test "$(count)" = "$had"
await 60 "nothing waits" status '"pending":0'
see "a board is plugged in" board older
await 30 "it passes" status '"slots":[{"name":"A","state":"passed"'
inside systemctl stop board-older
had=$(count) before=$(property stationd.service MainPID)

part "upgrade"
see "apt install $package" inside apt-get install -y -q --no-install-recommends "$package"
see "it runs, as a new process" restarted
see "the records are there" test "$(count)" = "$had"
await 60 "nothing waits" status '"pending":0'
simulator=stationctl
see "the journal is whole" station stationctl spool verify --key /var/lib/stationd/station.pub
see "what was changed in /etc/default/stationd is kept" contains AWS_PROFILE=line3 inside cat /etc/default/stationd
inside systemctl stop stationd
see "one that is stopped is upgraded (again)" inside apt-get install -y -q --no-install-recommends --reinstall "$package"
see "and stays stopped" is inactive property stationd.service ActiveState
inside systemctl start stationd

part "the machine starts again"
inside systemctl poweroff >/dev/null 2>&1 || true
stopped() { ! kill -0 "$nspawn" 2>/dev/null; }
await 60 "it is off" stopped
boot
prepare
await 30 "the station is there by itself" active stationd.service
see "the records are there" test "$(count)" = "$had"

part "remove"
see "apt remove" inside apt-get remove -y -q secretfree-station
see "it does not run" fails inside sh -c "grep -lx stationd /proc/[0-9]*/comm"
see "its programs are gone" fails inside test -e /usr/bin/stationd
see "its configuration is kept" inside test -e /etc/secretfree/stationd.toml
see "its journal is kept" inside sh -c 'ls /var/lib/stationd/journal/*.jsonl'

part "purge"
see "apt purge asks nothing, and says that it left the journal" contains "left in place: /var/lib/stationd" inside apt-get purge -y -q secretfree-station
sed -n 's/^secretfree-station: /   > /p' "$work/output"
see "the configuration is gone" fails inside test -e /etc/secretfree/stationd.toml
see "no link to a unit is left" fails inside sh -c 'find /etc/systemd/system -name "stationd*" | grep .'
see "the journal is kept" inside sh -c 'ls /var/lib/stationd/journal/*.jsonl'
see "the registry is kept" inside test -e /srv/registry/items/$device.json

part "it comes back as itself"
see "apt install" inside apt-get install -y -q --no-install-recommends "$package"
see "stationd init, with the same answers" inside $init
see "it starts" inside systemctl enable --now stationd
see "its identity is the old one" contains "$(cat "$work/station.pub")" inside cat /var/lib/stationd/station.pub
see "the records are there" test "$(count)" = "$had"
see "the first board is plugged in again" board same
await 30 "it passes, and nothing is added" status '"slots":[{"name":"A","state":"passed"'
see "the records are there" test "$(count)" = "$had"
unplug same

part "the issuer"
see "apt install $issuer" inside apt-get install -y -q --no-install-recommends "$issuer"
see "nothing starts unconfigured" is inactive property issuerd.service ActiveState
see "who starts it all the same is told" fails inside systemctl start issuerd
see "with the reason, and what to do" contains "there is no configuration /etc/secretfree/issuerd.toml yet: write one" inside journalctl --no-pager -o cat -u issuerd
see "nothing started it again" is 0 property issuerd.service NRestarts
inside systemctl reset-failed
asissuer() { inside runuser -u issuerd -- "$@"; }
inside install -d -o issuerd -g issuerd /srv/issuer
see "a registry, a CA, the claims" asissuer sh -c 'cd /var/lib/issuerd && stationctl registry init /srv/issuer/registry && head -c 33 /dev/urandom | base64 >ca.pass && chmod 600 ca.pass &&
	issuerctl ca init --dir ca --name Widgiot --passphrase-file ca.pass && issuerctl claims init claims'
inside tee /etc/secretfree/issuerd.toml >/dev/null <<END
sku = "widgiot"
[registry]
kind = "dir"
dir = "/srv/issuer/registry"
[ca]
kind = "local"
dir = "/var/lib/issuerd/ca"
passphrase_file = "/var/lib/issuerd/ca.pass"
[issuance]
kind = "dir"
dir = "/var/lib/issuerd/claims"
[[trusted_station]]
name = "widgiot/line3-a"
key = "$(cat "$work/station.pub")"
END
see "issuerd --check" asissuer issuerd --check
see "systemctl enable --now issuerd.socket: port 443" inside systemctl enable --now issuerd.socket
await 30 "the first request starts it" contains challenge inside curl -s -m 5 http://127.0.0.1:443/challenge
see "exposure at most 2.0" exposure issuerd.service
cat "$work/seen"
see "it runs" active issuerd.service
see "the sweep" inside systemctl start issuerd-sweep.service
see "apt purge says that it left the keys" contains "left in place: /var/lib/issuerd" inside apt-get purge -y -q secretfree-issuer
sed -n 's/^secretfree-issuer: /   > /p' "$work/output"
see "they are there" inside test -e /var/lib/issuerd/ca/root.pem
part
echo "all of it is as it should be"
