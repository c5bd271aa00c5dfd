// Package systemd holds what a machine is set up with: units, rules, and the
// sample configurations. What commands need of it is embedded here, so that
// what they write and what is in this folder are one text.
package systemd

import _ "embed"

// StationConfig is stationd.toml.
//
//go:embed stationd.toml
var StationConfig string
