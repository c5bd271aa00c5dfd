#!/usr/bin/env bash
# What a station costs: how long it takes to start with 100,000 records, and what memory and processor it takes to wait for boards on 16 slots, without
# and with ten pages open. It fails if that is more than is promised. It takes some six minutes, most of which it waits.
#
#   .ci/bench-station.sh [ARGS]    as -figuresidle 10s, or -figuresrecords 1000000
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
go test -count=1 -v -timeout 60m -run '^TestFigures$' ./cmd -args -figures "$@"
