package server

import (
	"fmt"
	"os"
	"testing"

	"secretfree/cloud/issuer/ca/catest"
)

func TestMain(m *testing.M) {
	if setting := os.Getenv(servedSetting); setting != "" { // a server of a benchmark
		if err := serveAsTold(setting); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if parent, err := catest.Dir(); err == nil {
		_ = os.RemoveAll(parent)
	}
	os.Exit(code)
}
