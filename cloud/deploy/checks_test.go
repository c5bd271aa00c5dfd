package deploy

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// check returns what is wrong with the resources of a stack.
type check func(resources map[string]any) []string

func checks() map[string]check {
	return map[string]check{
		"wildcards": wildcards, "grants": grants, "roles": roles, "authorizer": authorizer, "retain": retain, "tables": tables,
		"bucket": bucket, "functions": functions, "throttling": throttling, "alarms": alarms, "devices": devices, "jitp": jitp,
	}
}

type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

func (p *problems) want(what string, got, want any) {
	if g, w := text(got), text(want); g != w {
		p.add("%s is %s, want %s", what, g, w)
	}
}

// at goes down through objects; nil if something is not there.
func at(v any, path ...string) any {
	for _, name := range path {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

func list(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

// text writes a value with references as ${Name} and ${Name.Attribute}.
func text(v any) string {
	m, _ := v.(map[string]any)
	switch {
	case v == nil:
		return "nothing"
	case m["Ref"] != nil:
		return fmt.Sprintf("${%v}", m["Ref"])
	case m["Fn::GetAtt"] != nil:
		parts := texts(m["Fn::GetAtt"])
		return "${" + strings.Join(parts, ".") + "}"
	case m["Fn::Sub"] != nil:
		return text(list(m["Fn::Sub"])[0])
	}
	return fmt.Sprint(v)
}

func texts(v any) []string {
	var out []string
	for _, e := range list(v) {
		out = append(out, text(e))
	}
	return out
}

func ofType(resources map[string]any, kind string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		if at(resources[name], "Type") == kind {
			names = append(names, name)
		}
	}
	return names
}

// statement of a policy, with the conditions of the template taken as met.
type statement struct {
	policy, sid, effect string
	actions, resources  []string
	raw                 map[string]any
}

func statements(policy string, document any) []statement {
	var out []statement
	for _, s := range list(at(document, "Statement")) {
		if branches, ok := at(s, "Fn::If").([]any); ok {
			s = branches[1]
		}
		raw, _ := s.(map[string]any)
		out = append(out, statement{policy, text(raw["Sid"]), text(raw["Effect"]), texts(raw["Action"]), texts(raw["Resource"]), raw})
	}
	return out
}

// granted are the statements of all policies of principals of the account.
func granted(resources map[string]any) []statement {
	var out []statement
	for name, r := range resources {
		switch at(r, "Type") {
		case "AWS::IAM::ManagedPolicy":
			out = append(out, statements(name, at(r, "Properties", "PolicyDocument"))...)
		case "AWS::IAM::Role":
			for _, p := range list(at(r, "Properties", "Policies")) {
				out = append(out, statements(name, at(p, "PolicyDocument"))...)
			}
		case "AWS::KMS::Key":
			out = append(out, statements(name, at(r, "Properties", "KeyPolicy"))...)
		}
	}
	return out
}

// iotWithoutResources are the actions for which AWS takes no resource but *:
// see the table of actions of AWS IoT in the service authorization reference.
func iotWithoutResources() []string {
	return []string{"iot:AttachThingPrincipal", "iot:CreateCertificateFromCsr", "iot:DescribeEndpoint", "iot:ListCertificates", "iot:RegisterCertificate", "iot:RegisterCertificateWithoutCA"}
}

// iotOfTheIssuer are those of iotWithoutResources that the issuer has.
func iotOfTheIssuer() []string {
	return slices.DeleteFunc(iotWithoutResources(), func(action string) bool { return action == "iot:ListCertificates" })
}

// exceptions are the resources with a wildcard, by policy and statement, and
// why there is no narrower one.
func exceptions() map[string][]string {
	const iot = "arn:${AWS::Partition}:iot:${AWS::Region}:${AWS::AccountId}:"
	any, cert, thing := []string{"*"}, []string{iot + "cert/*"}, []string{iot + "thing/*"}
	return map[string][]string{
		// no action of these takes a resource
		"IssuerPolicy/IotActionsWithoutResources":     any,
		"SweepPolicy/IotActionsWithoutResources":      any,
		"OperatorPolicy/IotRegistersWhatIsRevoked":    any,
		"ProvisioningRole/IotActionsWithoutResources": any,
		// the policy of a key is about that key, whatever it says
		"ChallengeKey/ThisKeyIsGovernedByPoliciesOfTheAccount": any,
		// the id of a certificate is known only when it is there
		"IssuerPolicy/IotCertificatesOfThisAccount":     cert,
		"OperatorPolicy/IotCertificatesOfThisAccount":   cert,
		"SweepPolicy/IotCertificatesOfThisAccount":      cert,
		"ProvisioningRole/IotCertificatesOfThisAccount": cert,
		// a thing has the name of its device, which begins with nothing in
		// particular
		"IssuerPolicy/IotThingsOfThisAccount":     thing,
		"ProvisioningRole/IotThingsOfThisAccount": thing,
		"IssuerPolicy/IotGroupOfTheProduct":       thing,
		"SweepPolicy/IotThingsOfThisAccount":      thing,
		"SweepPolicy/IotGroupOfTheProduct":        thing,
		"ProvisioningRole/IotGroupOfTheProduct":   thing,
		// the objects below a prefix
		"ReconcilePolicy/ReadsTheKeys":   {"${Bucket.Arn}/pubkeys/*"},
		"StationPolicy/ProbesTheBucket":  {"${Bucket.Arn}/probe/${!aws:PrincipalTag/station}/*"},
		"StationPolicy/StoresKeys":       {"${Bucket.Arn}/pubkeys/*"},
		"StationPolicy/StoresItsJournal": {"${Bucket.Arn}/journal/${!aws:PrincipalTag/station}/*"},
	}
}

func wildcards(resources map[string]any) []string {
	var p problems
	known := exceptions()
	for _, s := range granted(resources) {
		name := s.policy + "/" + s.sid
		if s.effect != "Allow" || len(s.actions) == 0 || len(s.resources) == 0 || s.raw["NotAction"] != nil || s.raw["NotResource"] != nil {
			p.add("%s is not a list of what is allowed", name)
		}
		for _, action := range s.actions {
			if strings.Contains(action, "*") {
				p.add("%s allows %s", name, action)
			}
			if slices.Contains(s.resources, "*") && !strings.HasPrefix(action, "kms:") && !slices.Contains(iotWithoutResources(), action) {
				p.add("%s allows %s on everything", name, action)
			}
		}
		for _, resource := range s.resources {
			if strings.Contains(resource, "*") && !slices.Contains(known[name], resource) {
				p.add("%s is about %s", name, resource)
			}
		}
	}
	return p
}

// grants are all that the policies allow, so that nothing is added in passing.
func grants(resources map[string]any) []string {
	var p problems
	want := map[string]map[string]string{
		"IssuerPolicy": {
			"ReadsTheRegistry":             "dynamodb:GetItem",
			"RemembersWhatWasIssued":       "dynamodb:GetItem dynamodb:PutItem dynamodb:Query",
			"Challenges":                   "kms:GenerateMac",
			"SignsWithTheKeyOfTheCa":       "kms:Sign",
			"ReadsTheKeyOfTheCa":           "kms:GetPublicKey",
			"IssuesWithOneTemplate":        "acm-pca:IssueCertificate",
			"FetchesWhatWasSigned":         "acm-pca:GetCertificate",
			"IotActionsWithoutResources":   strings.Join(iotOfTheIssuer(), " "),
			"IotCertificatesOfThisAccount": "iot:DescribeCertificate iot:UpdateCertificate",
			"IotThingsOfThisAccount":       "iot:CreateThing iot:DescribeThing",
			"IotGroupOfTheProduct":         "iot:AddThingToThingGroup",
		},
		"AuthorizerPolicy": {"ReadsTheRegistry": "dynamodb:GetItem", "Challenges": "kms:GenerateMac"},
		"StationPolicy": {
			"ReadsTheRegistry": "dynamodb:GetItem", "EnrolsBoards": "dynamodb:PutItem", "MovesItsCheckpoint": "dynamodb:PutItem", "StoresKeys": "s3:GetObject s3:PutObject",
			"StoresItsJournal": "s3:GetObject s3:PutObject", "ListsItsJournal": "s3:ListBucket",
			"DeletesItsProbe": "dynamodb:DeleteItem", "ProbesTheBucket": "s3:DeleteObject s3:GetObject s3:PutObject",
		},
		"ReconcilePolicy": {"ReadsTheWholeRegistry": "dynamodb:GetItem dynamodb:Scan", "ReadsTheKeys": "s3:GetObject", "ListsTheKeys": "s3:ListBucket"},
		"OperatorPolicy": {
			"ChangesStates": "dynamodb:GetItem dynamodb:UpdateItem", "ClosesClaims": "dynamodb:GetItem dynamodb:PutItem dynamodb:Query",
			"RevokesAtTheCa": "acm-pca:GetCertificate acm-pca:RevokeCertificate", "IotCertificatesOfThisAccount": "iot:DescribeCertificate iot:UpdateCertificate",
		},
	}
	want["SweepPolicy"] = map[string]string{
		"ReadsTheRegistry": "dynamodb:GetItem", "SettlesClaims": "dynamodb:GetItem dynamodb:PutItem dynamodb:Query dynamodb:Scan",
		"RevokesAtTheCa":               "acm-pca:GetCertificate acm-pca:RevokeCertificate",
		"IotActionsWithoutResources":   "iot:AttachThingPrincipal iot:ListCertificates iot:RegisterCertificate iot:RegisterCertificateWithoutCA",
		"IotCertificatesOfThisAccount": "iot:DeleteCertificate iot:DescribeCertificate iot:UpdateCertificate",
		"IotThingsOfThisAccount":       "iot:CreateThing iot:DescribeThing", "IotGroupOfTheProduct": "iot:AddThingToThingGroup",
	}
	want["RevocationListPolicy"] = map[string]string{
		"ReadsWhatWasIssued": "dynamodb:Scan", "SignsRevocationLists": "kms:Sign", "ReadsTheKeyOfTheCa": "kms:GetPublicKey",
	}
	want["OperatorPolicy"]["IotRegistersWhatIsRevoked"] = "iot:RegisterCertificate iot:RegisterCertificateWithoutCA"
	conditions := map[string]string{
		"StationPolicy/EnrolsBoards": "map[ForAllValues:StringEquals:map[dynamodb:Attributes:[device-id pubkey pubkey-bucket pubkey-object " +
			"key-fingerprint record station enrolled-at state generation device]]]",
		"StationPolicy/DeletesItsProbe": "map[ForAllValues:StringEquals:map[dynamodb:LeadingKeys:[probe:${aws:PrincipalTag/station}]]]",
		"StationPolicy/MovesItsCheckpoint": "map[ForAllValues:StringEquals:map[dynamodb:Attributes:[device-id checkpoint size] " +
			"dynamodb:LeadingKeys:[checkpoint:${aws:PrincipalTag/station}]]]",
		"IssuerPolicy/SignsWithTheKeyOfTheCa":       "map[StringEquals:map[kms:MessageType:DIGEST kms:SigningAlgorithm:ECDSA_SHA_256]]",
		"RevocationListPolicy/SignsRevocationLists": "map[StringEquals:map[kms:MessageType:DIGEST kms:SigningAlgorithm:ECDSA_SHA_256]]",
		"IssuerPolicy/IssuesWithOneTemplate":        "map[StringEquals:map[acm-pca:TemplateArn:map[Ref:CaTemplateArn]]]",
		"StationPolicy/ListsItsJournal":             "map[StringLike:map[s3:prefix:journal/${aws:PrincipalTag/station}/*]]",
		"ReconcilePolicy/ListsTheKeys":              "map[StringLike:map[s3:prefix:pubkeys/*]]",
	}
	for _, policy := range ofType(resources, "AWS::IAM::ManagedPolicy") {
		got := map[string]string{}
		for _, s := range statements(policy, at(resources[policy], "Properties", "PolicyDocument")) {
			got[s.sid] = strings.Join(s.actions, " ")
			if condition, ok := conditions[policy+"/"+s.sid]; ok || s.raw["Condition"] != nil {
				p.want("the condition of "+policy+"/"+s.sid, fmt.Sprint(s.raw["Condition"]), condition)
			}
			for _, resource := range s.resources {
				if strings.HasPrefix(s.actions[0], "dynamodb:") && resource != "${Registry.Arn}" && resource != "${Issuance.Arn}" {
					p.add("%s/%s is about %s", policy, s.sid, resource)
				}
			}
		}
		if !maps.Equal(got, want[policy]) {
			p.add("%s allows %v, want %v", policy, got, want[policy])
		}
	}
	return p
}

// roles have policies of this template only, and each function its own.
func roles(resources map[string]any) []string {
	var p problems
	for _, name := range ofType(resources, "AWS::IAM::Role") {
		for _, arn := range list(at(resources[name], "Properties", "ManagedPolicyArns")) {
			if ref, ok := at(arn, "Ref").(string); !ok || at(resources[ref], "Type") != "AWS::IAM::ManagedPolicy" {
				p.add("%s has the policy %s", name, text(arn))
			}
		}
	}
	p.want("the issuer's role", at(resources["IssuerFunction"], "Properties", "Role"), "${IssuerRole.Arn}")
	p.want("the authorizer's role", at(resources["AuthorizerFunction"], "Properties", "Role"), "${AuthorizerRole.Arn}")
	p.want("the issuer's policies", texts(at(resources["IssuerRole"], "Properties", "ManagedPolicyArns")), []string{"${IssuerPolicy}"})
	p.want("the authorizer's policies", texts(at(resources["AuthorizerRole"], "Properties", "ManagedPolicyArns")), []string{"${AuthorizerPolicy}"})
	return p
}

// authorizer: it is asked for every request on the paths where it sees one, and
// there are no other doors.
func authorizer(resources map[string]any) []string {
	var p problems
	body := at(resources["Api"], "Properties", "Body")
	device := at(body, "securityDefinitions", "Device", "x-amazon-apigateway-authorizer")
	p.want("the kind of the authorizer", at(device, "type"), "request")
	p.want("how long its answers are kept", at(device, "authorizerResultTtlInSeconds"), 0)
	p.want("its identity source", at(device, "identitySource"), "method.request.header.device-csr")
	got := map[string]string{}
	paths, _ := at(body, "paths").(map[string]any)
	for path, methods := range paths {
		for method, m := range methods.(map[string]any) {
			got[method+" "+path] = fmt.Sprint(at(m, "security"))
		}
	}
	const asked, open, est = "[map[Device:[]]]", "<nil>", " /.well-known/est/{sku}/{proxy+}"
	want := map[string]string{"post /new": asked, "post /proto": asked, "get /challenge": open, "get" + est: open, "post" + est: open}
	if !maps.Equal(got, want) {
		p.add("the doors are %v, want %v", got, want)
	}
	return p
}

func retain(resources map[string]any) []string {
	var p problems
	kinds := map[string]int{"AWS::DynamoDB::Table": 2, "AWS::S3::Bucket": 1, "AWS::S3::BucketPolicy": 1, "AWS::KMS::Key": 1, "AWS::Logs::LogGroup": 2}
	for kind, n := range kinds {
		names := ofType(resources, kind)
		if len(names) != n {
			p.add("there are %d of %s, want %d", len(names), kind, n)
		}
		for _, name := range names {
			p.want(name+"'s DeletionPolicy", at(resources[name], "DeletionPolicy"), "Retain")
			p.want(name+"'s UpdateReplacePolicy", at(resources[name], "UpdateReplacePolicy"), "Retain")
		}
	}
	return p
}

func tables(resources map[string]any) []string {
	var p problems
	for _, name := range ofType(resources, "AWS::DynamoDB::Table") {
		table := at(resources[name], "Properties")
		p.want(name+": recovery", at(table, "PointInTimeRecoverySpecification", "PointInTimeRecoveryEnabled"), true)
		p.want(name+": protection", at(table, "DeletionProtectionEnabled"), true)
		p.want(name+": encryption", at(table, "SSESpecification", "SSEEnabled"), true)
		p.want(name+": time to live", at(table, "TimeToLiveSpecification"), nil)
	}
	registry, issuance := at(resources["Registry"], "Properties"), at(resources["Issuance"], "Properties")
	p.want("the registry's stream", at(registry, "StreamSpecification", "StreamViewType"), "NEW_AND_OLD_IMAGES")
	p.want("the registry's name", at(registry, "TableName"), "${Sku}-iot-provisioning-secretfree")
	p.want("the registry's key", at(registry, "KeySchema"), "[map[AttributeName:device-id KeyType:HASH]]")
	p.want("the name of the table of claims", at(issuance, "TableName"), "${Sku}-iot-issuance")
	p.want("the key of the table of claims", at(issuance, "KeySchema"), "[map[AttributeName:device-id KeyType:HASH] map[AttributeName:claim KeyType:RANGE]]")
	return p
}

func bucket(resources map[string]any) []string {
	var p problems
	b := at(resources["Bucket"], "Properties")
	p.want("versioning", at(b, "VersioningConfiguration", "Status"), "Enabled")
	for _, what := range []string{"BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"} {
		p.want(what, at(b, "PublicAccessBlockConfiguration", what), true)
	}
	got := map[string]string{}
	for _, s := range statements("BucketRules", at(resources["BucketRules"], "Properties", "PolicyDocument")) {
		got[s.sid] = fmt.Sprint(s.effect, s.raw["Principal"], s.actions, s.resources, s.raw["Condition"])
	}
	const below = "[${Bucket.Arn}/pubkeys/* ${Bucket.Arn}/journal/*]"
	want := map[string]string{
		"TlsOnly":    "Deny*[s3:*][${Bucket.Arn} ${Bucket.Arn}/*]map[Bool:map[aws:SecureTransport:false]]",
		"CreateOnly": "Deny*[s3:PutObject]" + below + "map[Null:map[s3:if-none-match:true]]",
		"NoDeletes":  "Deny*[s3:DeleteObject s3:DeleteObjectVersion]" + below + "<nil>",
	}
	for sid := range want {
		p.want(sid, strings.ReplaceAll(got[sid], " ", ""), strings.ReplaceAll(want[sid], " ", ""))
	}
	if len(got) != len(want) {
		p.add("the rules are %v", got)
	}
	return p
}

func functions(resources map[string]any) []string {
	var p problems
	for role, name := range map[string]string{"issuer": "IssuerFunction", "authorizer": "AuthorizerFunction"} {
		f := at(resources[name], "Properties")
		p.want(name+": runtime", at(f, "Runtime"), "provided.al2023")
		p.want(name+": handler", at(f, "Handler"), "bootstrap")
		p.want(name+": architecture", at(f, "Architectures"), "[arm64]")
		p.want(name+": role", at(f, "Environment", "Variables", "SECRETFREE_ROLE"), role)
		p.want(name+": concurrency", fmt.Sprint(at(f, "ReservedConcurrentExecutions")), "map[Fn::If:[ReservesConcurrency map[Ref:Concurrency] map[Ref:AWS::NoValue]]]")
		p.want(name+": log", at(f, "LoggingConfig", "LogGroup"), "${"+strings.TrimSuffix(name, "Function")+"Log}")
		if timeout, _ := at(f, "Timeout").(float64); timeout <= 8 || timeout >= 29 { // what the program and API Gateway wait for
			p.add("%s: its timeout is %v", name, timeout)
		}
	}
	p.want("what the issuer requires", at(resources["IssuerFunction"], "Properties", "Environment", "Variables", "SECRETFREE_REQUIRE_AUTHORIZER"), "1")
	for _, name := range ofType(resources, "AWS::Logs::LogGroup") {
		p.want(name+": retention", at(resources[name], "Properties", "RetentionInDays"), "${LogDays}")
	}
	return p
}

func throttling(resources map[string]any) []string {
	var p problems
	stage := list(at(resources["ApiStage"], "Properties", "MethodSettings"))
	if len(stage) != 1 {
		return []string{"there is not one setting for all methods"}
	}
	for name, want := range map[string]any{
		"HttpMethod": "*", "ResourcePath": "/*", "ThrottlingRateLimit": "${RequestsPerSecond}", "ThrottlingBurstLimit": "${RequestsAtOnce}",
		"MetricsEnabled": true, "DataTraceEnabled": false,
	} {
		p.want(name, at(stage[0], name), want)
	}
	return p
}

func alarms(resources map[string]any) []string {
	var p problems
	got := map[string]bool{}
	for _, name := range ofType(resources, "AWS::CloudWatch::Alarm") {
		a := at(resources[name], "Properties")
		of := ""
		for _, d := range list(at(a, "Dimensions")) {
			of += " " + text(at(d, "Value"))
		}
		got[text(at(a, "Namespace"))+" "+text(at(a, "MetricName"))+of] = true
		p.want(name+": actions", fmt.Sprint(at(a, "AlarmActions")), "map[Fn::If:[HasTopic [map[Ref:AlarmTopicArn]] map[Ref:AWS::NoValue]]]")
	}
	for _, want := range []string{
		"AWS/ApiGateway 5XXError ${Sku}-issuer", "AWS/ApiGateway Latency ${Sku}-issuer", "AWS/Lambda Throttles ${IssuerFunction}",
		"AWS/Lambda Throttles ${AuthorizerFunction}", "secretfree/${Sku} Refused",
	} {
		if !got[want] {
			p.add("there is no alarm for %s", want)
		}
	}
	counted := map[string]bool{}
	for _, name := range ofType(resources, "AWS::Logs::MetricFilter") {
		f := at(resources[name], "Properties")
		counted[text(at(f, "LogGroupName"))] = true
		p.want(name+": pattern", at(f, "FilterPattern"), `{ $.outcome = "refused" }`) // what the program logs
		p.want(name+": metric", at(list(at(f, "MetricTransformations"))[0], "MetricName"), "Refused")
	}
	if !counted["${IssuerLog}"] || !counted["${AuthorizerLog}"] {
		p.add("refusals are counted in %v", counted)
	}
	return p
}

// devices act as themselves, on what has their name in it.
func devices(resources map[string]any) []string {
	var p problems
	all := statements("DevicePolicy", at(resources["DevicePolicy"], "Properties", "PolicyDocument"))
	if len(all) == 0 {
		p.add("there is no policy for devices")
	}
	for _, s := range all {
		for _, word := range append(slices.Clone(s.actions), s.resources...) {
			if strings.ContainsAny(word, "*?") {
				p.add("devices may %v on %v", s.actions, s.resources)
			}
		}
		for _, resource := range s.resources {
			if !strings.Contains(resource, "/${!iot:Connection.Thing.ThingName}") {
				p.add("devices may %v on %s, which has no name of a thing in it", s.actions, resource)
			}
		}
		if slices.Contains(s.actions, "iot:Connect") {
			p.want("the condition to connect", fmt.Sprint(s.raw["Condition"]), "map[Bool:map[iot:Connection.Thing.IsAttached:true]]")
		}
	}
	return p
}

// jitp: the body in the template is the file.
func jitp(resources map[string]any) []string {
	var p problems
	t := at(resources["ProvisioningTemplate"], "Properties")
	p.want("the type", at(t, "TemplateType"), "JITP")
	file, err := os.ReadFile("jitp.json")
	if err != nil {
		p.add("%v", err)
	}
	p.want("the body", at(t, "TemplateBody"), string(file))
	return p
}
