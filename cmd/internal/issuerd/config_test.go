package issuerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Every refusal names the file, the line and the remedy.
func TestConfigRefusals(t *testing.T) {
	const good = `sku = "widgiot"
listen = "127.0.0.1:8081"
metrics_listen = "127.0.0.1:9108"
endpoint = "mqtt.example.com"
[tls]
certificate = "/etc/secretfree/issuerd.crt"
key = "/etc/secretfree/issuerd.key"
[registry]
kind = "aws"
bucket = "widgiot-pubkeys"
region = "us-east-1"
[ca]
kind = "local"
dir = "/var/lib/issuerd/ca"
passphrase_file = "/etc/secretfree/ca.pass"
[issuance]
kind = "aws"
table = "widgiot-iot-issuance"
region = "eu-central-1"
dynamodb_endpoint = "http://localhost:8000"
[[trusted_station]]
name = "widgiot/line3-a"
key = "widgiot/line3-a+a64b52db+AfDiWRurqd4c2IZH5lSixX7TSN5dgA5Lu2LHLHOk6rQ1"
[policy]
algorithms = ["P-256"]
days = 0
[log]
level = "info"
`
	const localCA = "kind = \"local\"\ndir = \"/var/lib/issuerd/ca\"\npassphrase_file = \"/etc/secretfree/ca.pass\""
	load := func(t *testing.T, text string) (string, Config, error) {
		name := filepath.Join(t.TempDir(), "issuerd.toml")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(name)
		return name, c, err
	}
	if _, _, err := load(t, good); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{`sku = "widgiot"`, `sku = "Widgiot"`, `:1: sku is "Widgiot". Write`},
		{`"127.0.0.1:8081"`, `"127.0.0.1:99999"`, `:2: listen is "127.0.0.1:99999". Write an address and a port`},
		{`"127.0.0.1:8081"`, `""`, `:2: listen is "". Write an address and a port`},
		{`"127.0.0.1:9108"`, `"metrics"`, `:3: metrics_listen is "metrics". Write an address and a port`},
		{`"mqtt.example.com"`, `"mqtt example"`, `:4: endpoint is "mqtt example". Write where devices connect`},
		{`certificate = "/etc/secretfree/issuerd.crt"`, ``, `:5: tls has a certificate or a key, not both. Write`},
		{`"/etc/secretfree/issuerd.key"`, `"issuerd.key"`, `:7: tls.key is "issuerd.key". Write the absolute path`},
		{`"us-east-1"`, `"us east"`, `:11: registry.region is "us east". Write`},
		{`"local"`, `"acmpca"`, `:14: ca.dir does not go with kind = "acmpca". Remove it`},
		{localCA, "kind = \"acmpca\"\nroot = \"/r.pem\"", `:12: ca.arn is missing. Write the ARN`},
		{localCA, "kind = \"acmpca\"\narn = \"a\"\nroot = \"r.pem\"", `:15: ca.root is "r.pem". Write the absolute path`},
		{localCA, `kind = "iotcore"`, `a CA of AWS IoT Core needs [iot]`},
		{localCA, localCA + "\nname = \"A b\"", `:16: ca.name is "A b". Write 1 to 63`},
		{localCA, localCA + "\n[proto]\n" + localCA, `[ca] and [proto] are both named "local". Give one of them`},
		{`[policy]`, "[[retired_ca]]\n" + localCA + "\n[policy]", `two CAs are named "local". Give it the name that it had`},
		{`[policy]`, "[[retired_ca]]\nkind = \"local\"\n[policy]", `retired_ca[0].dir is "". Write the absolute path`},
		{`[policy]`, "[iot]\n[policy]", `[iot] names no policy`},
		{`[policy]`, "[renewal]\noverlap = \"0s\"\n[policy]", `renewal.overlap is 0s. Write how long`},
		{`[policy]`, "[renewal]\noverlap = \"a day\"\n[policy]", `a day`},
		{`[policy]`, "[challenge]\nkey_file = \"k\"\n[policy]", `:25: challenge.key_file is "k". Write the absolute path`},
		{`[policy]`, "[challenge]\nkey_file = \"/k\"\nkms_key = \"k\"\n[policy]", `:26: [challenge] has a key_file and a kms_key. Remove one`},
		{`[policy]`, "[challenge]\nminutes = 0\n[policy]", `:25: challenge.minutes is 0. Write 1 to 1440`},
		{`[policy]`, "[limits]\nproxies = -1\n[policy]", `:25: limits.proxies is -1. Write 0 or more`},
		{`days = 0`, "days = 10\nrenew_days = 10", `renewal 240h0m0s before the end of a validity of 240h0m0s`},
		{`days = 0`, "organization = \"ß\"", `the organization is not at most 64 characters`},
		{`days = 0`, "[[policy.hold]]\nstation = \"x\"", `a hold of a lot needs a reason`},
		{`"local"`, `"remote"`, `:13: ca.kind is "remote". Write`},
		{`"/var/lib/issuerd/ca"`, `"ca"`, `:14: ca.dir is "ca". Write the absolute path`},
		{`"/etc/secretfree/ca.pass"`, `"ca.pass"`, `:15: ca.passphrase_file is "ca.pass". Write the absolute path`},
		{`[issuance]` + "\nkind = \"aws\"", `[issuance]` + "\nkind = \"s3\"", `:17: issuance.kind is "s3". Write`},
		{`"widgiot-iot-issuance"`, `"x"`, `:18: issuance.table is "x". Write the name of the table`},
		{`"widgiot-iot-issuance"`, `"` + strings.Repeat("x", 256) + `"`, `xxx". Write the name of the table`},
		{`"eu-central-1"`, `"Frankfurt"`, `:19: issuance.region is "Frankfurt". Write`},
		{`"http://localhost:8000"`, `"localhost:8000"`, `:20: issuance.dynamodb_endpoint is "localhost:8000". Write http:// or https://`},
		{`name = "widgiot/line3-a"`, `name = "widgiot/line4-a"`, `:21: trusted station "widgiot/line4-a": its key is that of "widgiot/line3-a". Copy`},
		{`["P-256"]`, `["P-521"]`, `:25: policy.algorithms has "P-521". Write`},
		{`days = 0`, `days = -1`, `:26: policy.days is -1. Write`},
		{`days = 0`, `days = 18251`, `:26: policy.days is 18251. Write for how many days a certificate is valid, 18250 (50 years) at the most`},
		{`days = 0`, `days = 213504`, `:26: policy.days is 213504. Write`}, // once around what a duration can hold
		{`days = 0`, `days = "ten"`, `:26: policy.days takes a whole number, and this is a text.`},
		{`"info"`, `"loud"`, `:28: log.level is "loud". Write`},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("there is no %s", c.old)
		}
		if name, _, err := load(t, text); err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), name+":") {
			t.Errorf("%s: %v, want %s", c.new, err, c.want)
		}
	}
	// The cap is the issuer's own.
	_, c, err := load(t, strings.Replace(good, "days = 0", "days = 18250", 1))
	if err != nil {
		t.Fatal(err)
	}
	policy, err := c.IssuerPolicy(nil)
	if err != nil || policy.Validity != 18250*24*time.Hour {
		t.Fatal(policy, err)
	}
	policy.Validity += 24 * time.Hour
	if err := policy.Check(); err == nil {
		t.Error("the issuer allows more than the configuration")
	}
}
