package awsconfig

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"secretfree/cloud/issuer/issuertest"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/smithy-go"
)

// An issuer whose credentials were wrong, or were not there, goes on as soon as
// they are right.
func TestAWSCredentialsCorrected(t *testing.T) {
	for _, code := range []string{"none", "UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException"} {
		t.Run(code, func(t *testing.T) {
			path := issuertest.NoAWSEnvironment(t)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.Header.Get("Authorization"), "Credential=right/") {
					w.WriteHeader(http.StatusBadRequest)
					fmt.Fprintf(w, `{"__type":"com.amazonaws.dynamodb.v20120810#%s","message":"no"}`, code)
					return
				}
				fmt.Fprint(w, `{}`)
			}))
			defer server.Close()
			loaded, _, err := Load(t.Context(), "us-east-1")
			if err != nil {
				t.Fatal(err)
			}
			client := dynamodb.NewFromConfig(loaded, func(o *dynamodb.Options) {
				o.BaseEndpoint = aws.String(server.URL)
				o.HTTPSignerV4 = Signer{}
			})
			call := func() error {
				_, err := client.ListTables(t.Context(), &dynamodb.ListTablesInput{})
				return err
			}
			if code != "none" {
				issuertest.WriteCredentials(t, path, "wrong", "secret")
			}
			if err := call(); err == nil || code != "none" && Code(err) != code {
				t.Fatalf("with wrong credentials: %v", err)
			}
			issuertest.WriteCredentials(t, path, "right", "secret")
			if err := call(); err != nil {
				t.Fatalf("with right credentials: %v", err)
			}
		})
	}
}

// A corrected secret counts at once, under the same access key too.
func TestAWSSignerForgets(t *testing.T) {
	seen := map[string]bool{}
	for _, secret := range []string{"wrong", "right"} {
		r, err := http.NewRequest(http.MethodGet, "http://127.0.0.1/a", nil)
		if err != nil {
			t.Fatal(err)
		}
		at := time.Date(2026, 11, 24, 10, 20, 30, 0, time.UTC)
		if err := (Signer{}).SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "id", SecretAccessKey: secret}, r, "hash", "service", "us-east-1", at); err != nil {
			t.Fatal(err)
		}
		seen[r.Header.Get("Authorization")] = true
	}
	if len(seen) != 2 {
		t.Errorf("both secrets sign alike: %v", seen)
	}
}

func TestAWSNoRegion(t *testing.T) {
	issuertest.NoAWSEnvironment(t)
	if _, _, err := Load(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "no AWS region") {
		t.Errorf("got %v", err)
	}
}

func TestAWSFault(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{&smithy.GenericAPIError{Code: "ThrottlingException", Message: "slow\ndown"}, "doing: ThrottlingException: slow down"},
		{&smithy.GenericAPIError{Code: "InvalidSignatureException", Message: "x-amz-security-token:secret"}, "doing: InvalidSignatureException"},
		{&smithy.GenericAPIError{Code: "C", Message: strings.Repeat("ä", 200)}, "doing: C: " + strings.Repeat("ä", 148) + "…"},
		{issuertest.ErrInjected, "doing: injected"},
	} {
		if got := Fault("doing", test.err).Error(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
