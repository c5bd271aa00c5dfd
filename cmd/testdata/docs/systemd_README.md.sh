# another_machine: the state and the configuration are those of a machine on which only the package was installed.
another_machine() {
	mv "$ROOT/var/lib/stationd" "$ROOT/var/lib/old-machine"
	mv "$ROOT/etc/secretfree/stationd.toml" "$ROOT/etc/old-machine.toml"
	mkdir -m 700 "$ROOT/var/lib/stationd"
}
