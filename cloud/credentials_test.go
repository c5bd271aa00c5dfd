package cloud

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// A station whose credentials were wrong, or were not there, goes on as soon as
// they are right.
func TestCredentialsCorrected(t *testing.T) {
	for _, test := range []struct {
		name  string
		first func(id, secret string) string // the credentials file at the start; empty: there is none
		s3    bool                           // it is S3 that refuses them, otherwise DynamoDB
		fate  fate
		want  string
	}{
		{"unknown to S3", file("wrongkey", ""), true, unknownKey, "AWS does not know these credentials"},
		{"unknown to DynamoDB", file("wrongkey", ""), false, unknownKey, "AWS does not know these credentials"},
		{"wrong secret", file("", "wrongsecret"), true, wrongSecret, "secret key does not belong"},
		{"expired", file("oldkey", ""), false, expired, "have expired"},
		{"none", func(string, string) string { return "" }, true, passed, "no AWS credentials were found"},
	} {
		t.Run(test.name, func(t *testing.T) {
			onEveryAWS(t, func(t *testing.T, b *awsStore) {
				id, secret := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY")
				t.Setenv("AWS_ACCESS_KEY_ID", "")
				t.Setenv("AWS_SECRET_ACCESS_KEY", "")
				name := filepath.Join(t.TempDir(), "credentials")
				t.Setenv("AWS_SHARED_CREDENTIALS_FILE", name)
				if text := test.first(id, secret); text != "" {
					must(t, os.WriteFile(name, []byte(text), 0o600))
				}
				var corrected atomic.Bool
				refuse := func(request *http.Request) fate {
					switch {
					case !corrected.Load():
						return test.fate
					case !strings.Contains(request.Header.Get("Authorization"), "Credential="+id+"/"):
						return unknownKey
					}
					return passed
				}
				b.s3.decide(func(request *http.Request) fate {
					if !test.s3 && !corrected.Load() {
						return believed // a bucket that checks signatures would be the first to refuse
					}
					return refuse(request)
				})
				b.dynamo.decide(refuse)
				r, s := b.open(t, ""), sealed(t, 1, 1)
				if err := r.Put(t.Context(), s); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got %v, want %q", err, test.want)
				}
				corrected.Store(true)
				must(t, os.WriteFile(name, []byte(file("", "")(id, secret)), 0o600))
				must(t, r.Put(t.Context(), s))
			})
		})
	}
}

// file is a credentials file with these parts, or where they are empty the
// right ones.
func file(wrongID, wrongSecret string) func(id, secret string) string {
	return func(id, secret string) string {
		if wrongID != "" {
			id = wrongID
		}
		if wrongSecret != "" {
			secret = wrongSecret
		}
		return fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", id, secret)
	}
}

// A corrected secret counts at once, under the same access key too.
func TestCorrectedSecretSigns(t *testing.T) {
	setAWSEnv(t)
	a := onceAWS(t, "http://127.0.0.1:1", "http://127.0.0.1:1")
	at := time.Date(2026, 11, 24, 10, 20, 30, 0, time.UTC)
	for name, signer := range map[string]interface {
		SignHTTP(context.Context, aws.Credentials, *http.Request, string, string, string, time.Time, ...func(*v4.SignerOptions)) error
	}{"S3": a.s3.Options().HTTPSignerV4, "large objects": a.slow.Options().HTTPSignerV4, "DynamoDB": a.dynamo.Options().HTTPSignerV4} {
		seen := map[string]bool{}
		for _, secret := range []string{"wrong", "right"} {
			r, err := http.NewRequest(http.MethodGet, "http://127.0.0.1/a", nil)
			must(t, err)
			must(t, signer.SignHTTP(t.Context(), aws.Credentials{AccessKeyID: "id", SecretAccessKey: secret}, r, "hash", "service", "us-east-1", at))
			seen[r.Header.Get("Authorization")] = true
		}
		if len(seen) != 2 {
			t.Errorf("%s: both secrets sign alike: %v", name, seen)
		}
	}
}
