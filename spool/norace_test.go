//go:build !race

package spool

// raceDetector: what goes on in one goroutine is done less often under it, for
// it is ten times as slow. CI runs all tests without it too.
const raceDetector = false
