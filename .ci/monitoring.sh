#!/usr/bin/env bash
# Checks the alert rules with promtool, which Debian has in its package prometheus: it is unpacked into .cache, not installed.
#
#   .ci/monitoring.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${SECRETFREE_CACHE:-$PWD/.cache}/promtool
if ! command -v promtool >/dev/null && [ ! -x "$cache/usr/bin/promtool" ]; then
	mkdir -p "$cache.new"
	(cd "$cache.new" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } && dpkg -x prometheus_*.deb . && rm prometheus_*.deb) >&2
	rm -rf "$cache"
	mv "$cache.new" "$cache"
fi
export PATH=$PATH:$cache/usr/bin
promtool --version | head -n 1
# -v, so that a test that was skipped is seen.
go test -count=1 -v -run '^(TestRules|TestAlerts|TestDashboard|TestMetricNames|TestMetricTable)$' ./cmd | tee >(cat >&2) | grep '^--- PASS: TestRules' >/dev/null
