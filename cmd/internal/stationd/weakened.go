//go:build weakened

package stationd

// The tag is for the mutation campaign of package station alone: a station that is built with it must not compile.
var _ = noStationIsBuiltWithTheTagWeakened
