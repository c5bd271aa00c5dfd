package issuerd

import "testing"

func TestSampleConfiguration(t *testing.T) {
	c, err := Load("../../../systemd/issuerd.toml")
	if err != nil {
		t.Fatal(err)
	}
	if c.SKU != "widgiot" || c.Issuance.Kind != "aws" || len(c.Stations) != 1 {
		t.Errorf("%+v", c)
	}
}
