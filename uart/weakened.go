//go:build weakened

package uart

const weakened = true
