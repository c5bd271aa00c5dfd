// Package deploy holds the template of the cloud's part, and these tests of it.
// The template is turned into plain CloudFormation first, by the code that AWS
// runs, and what is asserted is asserted of the result.
package deploy

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const templateFile = "template.yaml"

// python is an interpreter that has the packages, with the test skipped where
// there is none.
func python(t *testing.T, packages string) string {
	t.Helper()
	path := os.Getenv("SECRETFREE_PYTHON")
	if path == "" {
		path = "python3"
	}
	if out, err := exec.CommandContext(t.Context(), path, "-c", "import "+packages).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("there is no Python with %s, and CI must have it: %v\n%s", packages, err, out)
		}
		t.Skipf("there is no Python with %s: the template is not checked here; .ci/serverless.sh run go test ./cloud/deploy does it", packages)
	}
	return path
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

type transformed struct {
	Error  string
	Result struct {
		Resources map[string]any
	}
}

// transform turns SAM templates into CloudFormation.
func transform(t *testing.T, texts ...string) []transformed {
	t.Helper()
	in, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), python(t, "samtranslator"), "testdata/transform.py")
	c.Stdin = bytes.NewReader(in)
	var complaints bytes.Buffer
	c.Stderr = &complaints
	out, err := c.Output()
	if err != nil {
		t.Fatalf("transform.py: %v\n%s", err, &complaints)
	}
	var results []transformed
	if err := json.Unmarshal(out, &results); err != nil || len(results) != len(texts) {
		t.Fatalf("transform.py gave %d results: %v", len(results), err)
	}
	return results
}

func TestLint(t *testing.T) {
	text, dir := read(t, templateFile), t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml") // with a runtime that there is not
	for name, text := range map[string]string{good: text, bad: strings.Replace(text, "provided.al2023", "provided.al1999", 1)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), python(t, "cfnlint"), "-c", "from cfnlint.runner import main; main()", "--format", "parseable", good, bad).CombinedOutput()
	if err == nil || !strings.Contains(string(out), bad+":") || !strings.Contains(string(out), ":E3030:") {
		t.Errorf("cfn-lint finds nothing wrong with a runtime that there is not: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, bad+":") {
			t.Errorf("cfn-lint: %s", line)
		}
	}
}

// Each check passes on the template, and finds what it is there for in one that
// is spoiled.
func TestTemplate(t *testing.T) {
	text := read(t, templateFile)
	all, spoils := checks(), spoils()
	if os.Getenv("CI") != "true" {
		t.Log("the spoiled templates are tried in CI only; they take a while")
		spoils = nil
	}
	texts := []string{text}
	for _, s := range spoils {
		spoiled := strings.Replace(text, s.old, s.new, 1)
		if spoiled == text {
			t.Fatalf("%s: there is no %s", s.check, s.old)
		}
		texts = append(texts, spoiled)
	}
	results := transform(t, texts...)
	if results[0].Error != "" {
		t.Fatal(results[0].Error)
	}
	for name, check := range all {
		for _, problem := range check(results[0].Result.Resources) {
			t.Errorf("%s: %s", name, problem)
		}
	}
	spoiled := map[string]bool{}
	for i, s := range spoils {
		spoiled[s.check] = true
		if r := results[i+1]; r.Error != "" {
			t.Errorf("%s with %q: %s", s.check, s.new, r.Error)
		} else if len(all[s.check](r.Result.Resources)) == 0 {
			t.Errorf("%s finds nothing wrong with %q in the place of %q", s.check, s.new, s.old)
		}
	}
	for name := range all {
		if !spoiled[name] && spoils != nil {
			t.Errorf("nothing shows that %s can fail", name)
		}
	}
}

// spoil is a change of the template that a check must find.
type spoil struct{ check, old, new string }

func spoils() []spoil {
	return []spoil{
		{"wildcards", "Sid: ReadsTheRegistry, Effect: Allow, Action: dynamodb:GetItem", "Sid: ReadsTheRegistry, Effect: Allow, Action: dynamodb:*"},
		{"wildcards", "Resource: !GetAtt Issuance.Arn", `Resource: "*"`},
		{"wildcards", "                - iot:DescribeEndpoint\n", "                - iot:DescribeEndpoint\n                - iot:DescribeThing\n"},
		{"wildcards", `"${Bucket.Arn}/journal/${!aws:PrincipalTag/station}/*"`, `"${Bucket.Arn}/journal/*"`},
		{"wildcards", "Action: iot:AddThingToThingGroup", "NotAction: iot:DeleteThing"},
		{"grants", "Action: dynamodb:GetItem, Resource: !GetAtt Registry.Arn", "Action: [dynamodb:GetItem, dynamodb:PutItem], Resource: !GetAtt Registry.Arn"},
		{"grants", "Action: dynamodb:PutItem\n            Resource: !GetAtt Registry.Arn", "Action: [dynamodb:PutItem, dynamodb:Scan]\n            Resource: !GetAtt Registry.Arn"},
		{"grants", "                  - generation\n                  - device\n", "                  - generation\n                  - device\n                  - epoch\n"},
		{"grants", `dynamodb:LeadingKeys: ["checkpoint:${aws:PrincipalTag/station}"]`, `dynamodb:LeadingKeys: ["checkpoint:line1"]`},
		{"grants", "Condition: {StringEquals: {acm-pca:TemplateArn: !Ref CaTemplateArn}}", ""},
		{"grants", "Condition: {StringEquals: {kms:SigningAlgorithm: ECDSA_SHA_256, kms:MessageType: DIGEST}}", ""},
		{"roles", "ManagedPolicyArns: [!Ref IssuerPolicy]", "ManagedPolicyArns: [arn:aws:iam::aws:policy/AWSIoTFullAccess]"},
		{"roles", "Role: !GetAtt AuthorizerRole.Arn", "Role: !GetAtt IssuerRole.Arn"},
		{"authorizer", "ReauthorizeEvery: 0", "ReauthorizeEvery: 300"},
		{"authorizer", "Headers: [device-csr]", "Headers: [Authorization]"},
		{"authorizer", "Path: /proto, Method: post, Auth: {Authorizer: Device}", "Path: /proto, Method: post"},
		{"authorizer", "Path: /challenge, Method: get", "Path: /challenge, Method: any"},
		{"retain", "    DeletionPolicy: Retain\n    UpdateReplacePolicy: Retain\n    Properties:\n      TableName: !Sub ${Sku}-iot-issuance", "    Properties:\n      TableName: !Sub ${Sku}-iot-issuance"},
		{"retain", "    UpdateReplacePolicy: Retain\n    Properties:\n      BucketName", "    Properties:\n      BucketName"},
		{"tables", "PointInTimeRecoveryEnabled: true", "PointInTimeRecoveryEnabled: false"},
		{"tables", "      DeletionProtectionEnabled: true\n", ""},
		{"tables", "NEW_AND_OLD_IMAGES", "KEYS_ONLY"},
		{"tables", "SSEEnabled: true", "SSEEnabled: false"},
		{"tables", "AttributeName: claim, KeyType: RANGE", "AttributeName: device-id, KeyType: RANGE"},
		{"tables", "      TableName: !Sub ${Sku}-iot-issuance\n", "      TableName: !Sub ${Sku}-iot-issuance\n      TimeToLiveSpecification: {AttributeName: t, Enabled: true}\n"},
		{"bucket", "Status: Enabled", "Status: Suspended"},
		{"bucket", "BlockPublicPolicy: true", "BlockPublicPolicy: false"},
		{"bucket", `"Null": {s3:if-none-match: "true"}`, `"Null": {s3:if-none-match: "false"}`},
		{"bucket", "[s3:DeleteObject, s3:DeleteObjectVersion]", "[s3:DeleteObject]"},
		{"bucket", `aws:SecureTransport: "false"`, `aws:SecureTransport: "true"`},
		{"functions", "provided.al2023", "python3.12"},
		{"functions", "[arm64]", "[x86_64]"},
		{"functions", `SECRETFREE_REQUIRE_AUTHORIZER: "1"`, `SECRETFREE_REQUIRE_AUTHORIZER: "0"`},
		{"functions", "SECRETFREE_ROLE: authorizer", "SECRETFREE_ROLE: issuer"},
		{"functions", "Timeout: 28", "Timeout: 60"},
		{"functions", "      ReservedConcurrentExecutions: !If [ReservesConcurrency, !Ref Concurrency, !Ref AWS::NoValue]\n", ""},
		{"functions", "      LoggingConfig: {LogGroup: !Ref AuthorizerLog}\n", ""},
		{"functions", "      RetentionInDays: !Ref LogDays\n", ""},
		{"throttling", "          ThrottlingRateLimit: !Ref RequestsPerSecond\n", ""},
		{"throttling", "DataTraceEnabled: false", "DataTraceEnabled: true"},
		{"alarms", "MetricName: 5XXError", "MetricName: 4XXError"},
		{"alarms", "Dimensions: [{Name: FunctionName, Value: !Ref AuthorizerFunction}]", "Dimensions: [{Name: FunctionName, Value: !Ref IssuerFunction}]"},
		{"alarms", `{ $.outcome = "refused" }`, "refused"},
		{"devices", "client/${!iot:Connection.Thing.ThingName}", "client/*"},
		{"devices", "topic/dt/${Sku}/${!iot:Connection.Thing.ThingName}", "topic/dt/${Sku}"},
		{"devices", "            Action: iot:Publish", "            Action: iot:*"},
		{"devices", `Condition: {Bool: {iot:Connection.Thing.IsAttached: "true"}}`, ""},
		{"jitp", `"Status": "ACTIVE"`, `"Status": "INACTIVE"`},
		{"jitp", "TemplateType: JITP", "TemplateType: FLEET_PROVISIONING"},
	}
}

// The provisioning template is what IoT Core takes, and makes a thing with the
// name of the device and nothing that the stack has not.
func TestProvisioningTemplate(t *testing.T) {
	type ref struct{ Ref string }
	var got struct {
		Parameters map[string]struct{ Type string }
		Resources  struct {
			Thing struct {
				Type       string
				Properties struct {
					ThingName   ref
					ThingGroups []string
				}
			}
			Certificate struct {
				Type       string
				Properties struct {
					CertificateId ref
					Status        string
				}
			}
		}
	}
	want := got
	want.Parameters = map[string]struct{ Type string }{"AWS::IoT::Certificate::CommonName": {"String"}, "AWS::IoT::Certificate::Id": {"String"}}
	want.Resources.Thing.Type = "AWS::IoT::Thing"
	want.Resources.Thing.Properties.ThingName.Ref = "AWS::IoT::Certificate::CommonName"
	want.Resources.Thing.Properties.ThingGroups = []string{"${Sku}-devices"}
	want.Resources.Certificate.Type = "AWS::IoT::Certificate"
	want.Resources.Certificate.Properties.CertificateId.Ref = "AWS::IoT::Certificate::Id"
	want.Resources.Certificate.Properties.Status = "ACTIVE"
	d := json.NewDecoder(strings.NewReader(read(t, "jitp.json")))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
