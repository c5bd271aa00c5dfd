package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// fakeKMS is KMS with one key to sign and one to make MACs, as its API
// reference has it.
type fakeKMS struct {
	key     *ecdsa.PrivateKey
	opened  crypto.PublicKey // what GetPublicKey answers
	usage   string
	mac     []byte
	badMac  bool
	message string // of a refusal of Sign
}

const (
	fakeSigningKey = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
	fakeMacKey     = "alias/challenge"
)

func newFakeKMS(t *testing.T) *fakeKMS {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeKMS{key: key, opened: key.Public(), usage: "SIGN_VERIFY", mac: []byte("a secret of 32 bytes, give or take")}
}

func (f *fakeKMS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer(w, r, func(in struct {
		KeyID            string `json:"KeyId"`
		Message          []byte
		MessageType      string
		SigningAlgorithm string
		MacAlgorithm     string
	}) any {
		want := fakeSigningKey
		if target(r) == "GenerateMac" {
			want = fakeMacKey
		}
		if in.KeyID != want {
			return badRequest("NotFoundException", "Key '"+in.KeyID+"' does not exist")
		}
		switch target(r) {
		case "GetPublicKey":
			der, err := x509.MarshalPKIXPublicKey(f.opened)
			if err != nil {
				return badRequest("KMSInternalException", err.Error())
			}
			return map[string]any{"KeyId": want, "PublicKey": der, "KeyUsage": f.usage, "KeySpec": "ECC_NIST_P256", "SigningAlgorithms": []string{"ECDSA_SHA_256"}}
		case "Sign":
			switch {
			case f.message != "":
				return badRequest("DisabledException", f.message)
			case in.MessageType != "DIGEST" || len(in.Message) != 32:
				return badRequest("ValidationException", "Digest is invalid length for algorithm ECDSA_SHA_256.")
			case in.SigningAlgorithm != "ECDSA_SHA_256":
				return badRequest("InvalidKeyUsageException", "Algorithm "+in.SigningAlgorithm+" is incompatible with key spec ECC_NIST_P256.")
			}
			signature, err := ecdsa.SignASN1(rand.Reader, f.key, in.Message)
			if err != nil {
				return badRequest("KMSInternalException", err.Error())
			}
			return map[string]any{"KeyId": want, "Signature": signature, "SigningAlgorithm": in.SigningAlgorithm}
		case "GenerateMac":
			if in.MacAlgorithm != "HMAC_SHA_256" || len(in.Message) == 0 {
				return badRequest("ValidationException", "MacAlgorithm or Message")
			}
			mac := hmac.New(sha256.New, f.mac)
			mac.Write(in.Message)
			sum := mac.Sum(nil)
			if f.badMac {
				sum = sum[:16]
			}
			return map[string]any{"KeyId": want, "Mac": sum, "MacAlgorithm": in.MacAlgorithm}
		}
		return badRequest("UnknownOperationException", target(r))
	})
}

func onEveryKMS(t *testing.T, test func(t *testing.T, signing, mac KMSConfig)) {
	t.Run("fake", func(t *testing.T) {
		awsEnvironment(t)
		at := awsTest{http: newFaults(newFakeKMS(t), target)}
		test(t, KMSConfig{KeyID: fakeSigningKey, test: at}, KMSConfig{KeyID: fakeMacKey, test: at})
	})
	t.Run("moto", func(t *testing.T) {
		endpoint := motoEndpoint(t)
		test(t, motoKey(t, endpoint, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify),
			motoKey(t, endpoint, types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac))
	})
}

// motoKey makes a key.
func motoKey(t *testing.T, endpoint string, spec types.KeySpec, usage types.KeyUsageType) KMSConfig {
	t.Helper()
	c := KMSConfig{KeyID: "new", Endpoint: endpoint}
	client, err := c.client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := client.CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage})
	if err != nil {
		t.Fatal(err)
	}
	c.KeyID = aws.ToString(out.KeyMetadata.Arn)
	return c
}

func TestKMSSigner(t *testing.T) {
	onEveryKMS(t, func(t *testing.T, signing, _ KMSConfig) {
		s, err := OpenKMSSigner(t.Context(), signing)
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256([]byte("a certificate"))
		signature, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if !ecdsa.VerifyASN1(s.Public().(*ecdsa.PublicKey), digest[:], signature) {
			t.Error("it does not verify")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.in(ctx).Sign(rand.Reader, digest[:], crypto.SHA256); err == nil {
			t.Error("it signs in a context that is over")
		}
		if _, err := s.Sign(rand.Reader, digest[:], crypto.SHA384); err == nil || !strings.Contains(err.Error(), "want SHA-256") {
			t.Errorf("a digest by SHA-384: %v", err)
		}
	})
}

func TestKMSMac(t *testing.T) {
	onEveryKMS(t, func(t *testing.T, _, mac KMSConfig) {
		seen := map[string]bool{}
		for _, label := range []string{"challenge v1", "challenge v1", "challenge v2"} {
			secret, err := KMSMac(t.Context(), mac, label)
			if err != nil || len(secret) != 32 {
				t.Fatalf("%d bytes, %v", len(secret), err)
			}
			seen[string(secret)] = true
		}
		if len(seen) != 2 {
			t.Errorf("%d secrets of two labels", len(seen))
		}
	})
}

func TestKMSRefusals(t *testing.T) {
	awsEnvironment(t)
	open := func(f *fakeKMS, c KMSConfig) error {
		c.test.http = newFaults(f, target)
		s, err := OpenKMSSigner(t.Context(), c)
		if err != nil {
			return err
		}
		digest := sha256.Sum256(nil)
		_, err = s.Sign(rand.Reader, digest[:], crypto.SHA256)
		return err
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		spoil func(f *fakeKMS, c *KMSConfig)
		want  string
	}{
		{"no key", func(_ *fakeKMS, c *KMSConfig) { c.KeyID = "" }, "no key is named"},
		{"unknown key", func(_ *fakeKMS, c *KMSConfig) { c.KeyID = "alias/other" }, "NotFoundException: Key 'alias/other' does not exist"},
		{"another curve", func(f *fakeKMS, _ *KMSConfig) { f.opened = p384.Public() }, "want ECC_NIST_P256 for SIGN_VERIFY"},
		{"another usage", func(f *fakeKMS, _ *KMSConfig) { f.usage = "KEY_AGREEMENT" }, "for KEY_AGREEMENT, want"},
		{"another key signs", func(f *fakeKMS, _ *KMSConfig) { f.key = newFakeKMS(t).key }, "not by the key that was opened"},
		{"disabled", func(f *fakeKMS, _ *KMSConfig) { f.message = "it is disabled" }, "signing in KMS: DisabledException: it is disabled"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, c := newFakeKMS(t), KMSConfig{KeyID: fakeSigningKey}
			test.spoil(f, &c)
			if err := open(f, c); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	f := newFakeKMS(t)
	f.badMac = true
	if _, err := KMSMac(t.Context(), KMSConfig{KeyID: fakeMacKey, test: awsTest{newFaults(f, target)}}, "label"); err == nil ||
		!strings.Contains(err.Error(), "16 bytes came, want 32") {
		t.Errorf("a short MAC: %v", err)
	}
	if _, err := KMSMac(t.Context(), KMSConfig{}, "label"); err == nil || !strings.Contains(err.Error(), "no key is named") {
		t.Errorf("no key: %v", err)
	}
}

// One fault is nothing; an outage is an error, and nothing is left of it.
func TestKMSWeather(t *testing.T) {
	awsEnvironment(t)
	for name, f := range fates {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newFaults(newFakeKMS(t), target)
				s, err := OpenKMSSigner(t.Context(), KMSConfig{KeyID: fakeSigningKey, test: awsTest{w}})
				if err != nil {
					t.Fatal(err)
				}
				digest := sha256.Sum256(nil)
				w.lose("Sign", f, 1)
				if _, err := s.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
					t.Errorf("one fault: %v", err)
				}
				w.lose("Sign", f, -1)
				if _, err := s.Sign(rand.Reader, digest[:], crypto.SHA256); err == nil {
					t.Error("it signed in an outage")
				}
				if n := w.count("Sign"); n != 2+3 {
					t.Errorf("%d calls, want %d", n, 2+3)
				}
				w.clear()
				if _, err := s.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
					t.Errorf("after it: %v", err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := newFaults(newFakeKMS(t), target)
		s, err := OpenKMSSigner(t.Context(), KMSConfig{KeyID: fakeSigningKey, test: awsTest{w}})
		if err != nil {
			t.Fatal(err)
		}
		w.lose("Sign", hung, -1)
		start, digest := time.Now(), sha256.Sum256(nil)
		if _, err := s.Sign(rand.Reader, digest[:], crypto.SHA256); err == nil || time.Since(start) != kmsTimeout {
			t.Errorf("a call that hangs: %v after %v", err, time.Since(start))
		}
	})
}

// A key in KMS that is not that of the issuing CA is refused at the start.
func TestKMSKeyOfAnotherCA(t *testing.T) {
	awsEnvironment(t)
	signer, err := OpenKMSSigner(t.Context(), KMSConfig{KeyID: fakeSigningKey, test: awsTest{newFaults(newFakeKMS(t), target)}})
	if err != nil {
		t.Fatal(err)
	}
	parent, err := sharedFolder()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLocal(LocalConfig{Dir: filepath.Join(parent, "ca"), Signer: signer}); err == nil ||
		!strings.Contains(err.Error(), "the key of the signer is not that of the certificate in issuing.pem") {
		t.Errorf("got %v", err)
	}
}
