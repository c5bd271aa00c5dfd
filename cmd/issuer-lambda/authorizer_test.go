package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/server"
)

const calledMethod = "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/prod/POST/new"

// deciding is a decider that says one thing.
type deciding func() error

func (d deciding) Decide(context.Context, issuer.Request) (issuer.Approved, error) {
	return issuer.Approved{}, d()
}

func ask(t *testing.T, a *authorizer, values ...string) (events.APIGatewayCustomAuthorizerResponse, error) {
	t.Helper()
	return a.invoke(t.Context(), events.APIGatewayCustomAuthorizerRequestTypeRequest{
		MethodArn: calledMethod, MultiValueHeaders: map[string][]string{"DEVICE-csr": values},
	})
}

func TestAuthorizer(t *testing.T) {
	b := newBoard()
	value := csr(t, b, b.ID())
	for name, c := range map[string]struct {
		verdict   error
		values    []string
		effect    string
		principal string // "": none that is known
		outcome   string
	}{
		"allowed":       {nil, []string{value}, "Allow", b.ID(), `"outcome":"authorized"`},
		"refused":       {issuer.KeyMismatch, []string{value}, "Deny", b.ID(), `"outcome":"refused"`},
		"malformed":     {nil, []string{"%"}, "Deny", "", `"refusal":"not-base64"`},
		"no request":    {nil, nil, "Deny", "", `"refusal":"no-request"`},
		"two requests":  {nil, []string{value, value}, "Deny", "", `"refusal":"two-requests"`},
		"no device id":  {issuer.CNNotADeviceID, []string{csr(t, b, "1111")}, "Deny", "", `"refusal":"cn-not-a-device-id"`},
		"foreign names": {issuer.NotEnrolled, []string{value}, "Deny", b.ID(), `"refusal":"not-enrolled"`},
	} {
		t.Run(name, func(t *testing.T) {
			var logs bytes.Buffer
			a := &authorizer{decider: deciding(func() error { return c.verdict }), log: zerolog.New(&logs)}
			out, err := ask(t, a, c.values...)
			must(t, err)
			want := events.APIGatewayCustomAuthorizerPolicy{Version: "2012-10-17", Statement: []events.IAMPolicyStatement{{
				Effect: c.effect, Action: []string{"execute-api:Invoke"}, Resource: []string{calledMethod}}}}
			if diff := cmp.Diff(want, out.PolicyDocument); diff != "" {
				t.Error(diff)
			}
			id, _ := out.Context[contextID].(string)
			if c.principal == "" {
				c.principal = "unidentified-" + id
			}
			digest := ""
			if len(c.values) == 1 {
				digest = digestOf(c.values[0])
			}
			if len(id) != 16 || out.PrincipalID != c.principal || out.Context[contextDigest] != digest {
				t.Errorf("principal %s, context %v", out.PrincipalID, out.Context)
			}
			if !strings.Contains(logs.String(), c.outcome) || !strings.Contains(logs.String(), id) || strings.Contains(logs.String(), value[:40]) {
				t.Errorf("logged %s", &logs)
			}
		})
	}
}

// Without a verdict there is no policy.
func TestAuthorizerOutage(t *testing.T) {
	value := csr(t, newBoard(), newBoard().ID())
	var logs bytes.Buffer
	away := &authorizer{decider: deciding(func() error { return errors.New("the registry is away") }), log: zerolog.New(&logs)}
	out, err := ask(t, away, value)
	if err == nil || strings.Contains(err.Error(), "registry") || len(out.PolicyDocument.Statement) > 0 || !strings.Contains(logs.String(), `"outcome":"try-later"`) {
		t.Errorf("%v %v; logged %s", out, err, &logs)
	}
	panics := &authorizer{decider: deciding(func() error { panic("a stranger's text") }), log: zerolog.New(&logs)}
	out, err = ask(t, panics, value)
	if !errors.Is(err, errInternal) || len(out.PolicyDocument.Statement) > 0 || strings.Contains(logs.String(), "stranger") {
		t.Errorf("%v %v; logged %s", out, err, &logs)
	}
}

// An ARN that would allow more than one method is not allowed.
func TestAuthorizerARN(t *testing.T) {
	a := &authorizer{decider: deciding(func() error { return nil }), log: zerolog.Nop()}
	value := csr(t, newBoard(), newBoard().ID())
	for _, arn := range []string{
		"", "*", "arn:aws:execute-api:us-east-1:123456789012:abcdef1234/*/*", strings.Replace(calledMethod, "new", "*", 1), strings.Replace(calledMethod, "new", "n?w", 1),
		strings.Replace(calledMethod, "new", "${aws:userid}", 1), strings.Replace(calledMethod, "execute-api", "s3", 1), calledMethod + "\n",
		"ARN" + calledMethod[len("arn"):], strings.Replace(calledMethod, "arn:aws:", "arn:aws*:", 1), strings.Replace(calledMethod, "arn:aws:", "arn:ibm:", 1),
		strings.Replace(calledMethod, "us-east-1", "*", 1), strings.Replace(calledMethod, "us-east-1", "", 1), strings.Replace(calledMethod, "123456789012", "*", 1),
		strings.Replace(calledMethod, "123456789012", "", 1), strings.Replace(calledMethod, "abcdef1234", "*", 1), strings.Replace(calledMethod, "abcdef1234", "", 1),
		strings.Replace(calledMethod, "prod", "*", 1), strings.Replace(calledMethod, "prod", "", 1), strings.Replace(calledMethod, "POST", "*", 1),
		strings.Replace(calledMethod, "POST", "", 1), strings.Replace(calledMethod, "POST", "post", 1), strings.TrimSuffix(calledMethod, "/new"), calledMethod + ":x",
	} {
		out, err := a.invoke(t.Context(), events.APIGatewayCustomAuthorizerRequestTypeRequest{MethodArn: arn, Headers: map[string]string{server.HeaderCSR: value}})
		if !errors.Is(err, errMethodARN) || len(out.PolicyDocument.Statement) > 0 {
			t.Errorf("%q: %v %v", arn, out, err)
		}
	}
	for _, arn := range []string{
		calledMethod, calledMethod + "/", calledMethod + "/a~b_c.d-E9", strings.Replace(calledMethod, "arn:aws:", "arn:aws-us-gov:", 1),
		strings.Replace(calledMethod, "prod", "Prod_2-a", 1), strings.TrimSuffix(calledMethod, "new"),
	} {
		if !isMethodARN(arn) {
			t.Errorf("%q is refused", arn)
		}
	}
}
