package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// python is an interpreter that has the packages, with the test skipped where
// there is none.
func python(t testing.TB, packages string) string {
	t.Helper()
	path := os.Getenv("SECRETFREE_PYTHON")
	if path == "" {
		path = "python3"
	}
	if out, err := exec.CommandContext(t.Context(), path, "-c", "import "+packages).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("there is no Python with %s, and CI must have it: %v\n%s", packages, err, out)
		}
		t.Skipf("there is no Python with %s; .ci/serverless.sh run has one", packages)
	}
	return path
}

const stationKey = "widgiot/line3-a+a64b52db+AfDiWRurqd4c2IZH5lSixX7TSN5dgA5Lu2LHLHOk6rQ1"

// The template fills in configurations that the program takes, whoever signs.
func TestTemplateConfiguration(t *testing.T) {
	text, err := os.ReadFile("../../cloud/deploy/template.yaml")
	must(t, err)
	in, err := json.Marshal([]string{string(text)})
	must(t, err)
	c := exec.CommandContext(t.Context(), python(t, "samtranslator"), "../../cloud/deploy/testdata/transform.py")
	c.Stdin = bytes.NewReader(in)
	out, err := c.Output()
	must(t, err)
	var read []struct {
		Raw struct {
			Resources map[string]struct {
				Properties struct {
					Environment struct{ Variables map[string]any }
				}
			}
		}
	}
	must(t, json.Unmarshal(out, &read))
	root := t.TempDir()
	writeStation(t, root, stationKey)
	for _, function := range []string{"IssuerFunction", "AuthorizerFunction"} {
		for _, kind := range []string{"local", "acmpca", "iotcore"} {
			t.Run(function+" "+kind, func(t *testing.T) {
				env := map[string]string{}
				for name, value := range read[0].Raw.Resources[function].Properties.Environment.Variables {
					env[name] = fill(value, map[string]string{
						"Sku": "widgiot", "Endpoint": "abc-ats.iot.us-east-1.amazonaws.com", "BucketName": "widgiot-pubkeys", "AWS::Region": "us-east-1", "ValidityDays": "365",
						"ChallengeKey.Arn": "arn:aws:kms:us-east-1:123456789012:key/2",
						"CrlUrl":           "http://crl.example.com/local.crl", "OcspUrl": "",
						"CaKeyArn": "arn:aws:kms:us-east-1:123456789012:key/1", "CaArn": "arn:aws:acm-pca:us-east-1:123456789012:certificate-authority/1",
						"CaTemplateArn": "arn:aws:acm-pca:::template/EndEntityClientAuthCertificate_APIPassthrough/V1",
					}, map[string]bool{"IsLocal": kind == "local", "IsPca": kind == "acmpca", "UsesIot": kind != "local"})
				}
				size := 0
				for name, value := range env {
					size += len(name) + len(value)
				}
				if size > 3<<10 { // of 4, with what Lambda itself puts there
					t.Errorf("the environment has %d bytes", size)
				}
				text := env[configSetting]
				parsed, err := configuration(text, root+"/stations")
				if err != nil || parsed.SKU != "widgiot" || parsed.Registry.Kind != "aws" || parsed.Issuance.Kind != "aws" || len(parsed.Stations) != 1 {
					t.Fatalf("%+v: %v\n%s", parsed, err, text)
				}
				if function == "IssuerFunction" && (parsed.CA.Kind != kind || (parsed.IoT != nil) != (kind != "local")) {
					t.Errorf("it signs otherwise: %+v, %+v", parsed.CA, parsed.IoT)
				}
				if function == "IssuerFunction" && (parsed.Policy.Days != 365 || parsed.Endpoint == "") {
					t.Errorf("%+v", parsed)
				}
				if parsed.Challenge.KMSKey != "arn:aws:kms:us-east-1:123456789012:key/2" || parsed.Challenge.Region != "us-east-1" {
					t.Errorf("%s: challenges of one function are none of the other's: %+v", function, parsed.Challenge)
				}
			})
		}
	}
}

// fill resolves what CloudFormation resolves.
func fill(v any, parameters map[string]string, conditions map[string]bool) string {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Sprint(v)
	}
	for name := range m {
		args, _ := m[name].([]any)
		switch name {
		case "Fn::Sub":
			text := m[name].(string)
			for key, value := range parameters {
				text = strings.ReplaceAll(text, "${"+key+"}", value)
			}
			return text
		case "Fn::If":
			if conditions[args[0].(string)] {
				return fill(args[1], parameters, conditions)
			}
			return fill(args[2], parameters, conditions)
		case "Fn::Join":
			text := ""
			for _, part := range args[1].([]any) {
				text += fill(part, parameters, conditions)
			}
			return text
		}
	}
	panic(fmt.Sprintf("what is %v", v))
}
