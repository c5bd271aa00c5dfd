package issuer_test

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/server"
)

// corpus are the hostile requests as seeds: the values of their headers
// device-csr, what comes beside, and all that may be a body.
func corpus(f *testing.F) (headers []string, beside [][2]string, bodies [][]byte) {
	f.Helper()
	for _, h := range hostileFiles(f) {
		header := h.httpHeader()
		for _, value := range header.Values(server.HeaderCSR) {
			headers = append(headers, value)
			if text, err := base64.StdEncoding.DecodeString(value); err == nil {
				bodies = append(bodies, text)
				if block, _ := pem.Decode(text); block != nil {
					bodies = append(bodies, block.Bytes)
				}
			}
		}
		if header.Get(server.HeaderChallenge) != "" || header.Get(server.HeaderSignature) != "" {
			beside = append(beside, [2]string{header.Get(server.HeaderChallenge), header.Get(server.HeaderSignature)})
		}
		if h.body != nil {
			bodies = append(bodies, h.body)
		}
	}
	return headers, beside, bodies
}

func mustBeMalformed(t *testing.T, err error) {
	t.Helper()
	if refusal, ok := errors.AsType[issuer.Refusal](err); !ok || !refusal.Malformed() {
		t.Fatalf("an error without a name: %v", err)
	}
}

// There is one header for a text, and what parses is the same request in the
// plainest form.
func FuzzParseHeader(f *testing.F) {
	headers, _, _ := corpus(f)
	for _, value := range headers {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		r, err := issuer.ParseHeader(value)
		if err != nil {
			mustBeMalformed(t, err)
			return
		}
		text, err := base64.StdEncoding.DecodeString(value)
		if err != nil || base64.StdEncoding.EncodeToString(text) != value {
			t.Fatalf("a second form of the base64 was read: %v", err)
		}
		plain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.DER()})
		again, err := issuer.ParseHeader(base64.StdEncoding.EncodeToString(plain))
		if err != nil || string(again.DER()) != string(r.DER()) {
			t.Fatalf("in the plainest form: %v", err)
		}
	})
}

// What is taken beside a request is written in one way only.
func FuzzWithSignature(f *testing.F) {
	_, beside, _ := corpus(f)
	for _, b := range beside {
		f.Add(b[0], b[1])
	}
	f.Add("", "")
	f.Fuzz(func(t *testing.T, challenge, signature string) {
		r, err := issuer.Request{}.WithSignature(challenge, signature)
		switch {
		case err != nil:
			mustBeMalformed(t, err)
		default:
			gotChallenge, gotSignature, ok := r.Detached()
			if ok != (challenge != "" || signature != "") || gotChallenge != challenge || base64.StdEncoding.EncodeToString(gotSignature) != signature {
				t.Fatalf("%q, %q became %q, %x", challenge, signature, gotChallenge, gotSignature)
			}
		}
	})
}

// A text that is taken for a challenge, be it expired, is byte for byte what
// encodes its content under the key.
func FuzzChallenge(f *testing.F) {
	c, err := issuer.NewChallenges(issuertest.SKU, []byte(strings.Repeat("k", 32)), issuer.DefaultChallengeLife)
	if err != nil {
		f.Fatal(err)
	}
	_, beside, _ := corpus(f)
	for _, b := range beside {
		f.Add(b[0])
		f.Add(strings.ToLower(b[0]))
	}
	f.Add(issuer.ChallengePrefix)
	f.Fuzz(func(t *testing.T, text string) {
		if err := c.Check(text, corpusClock); err != nil && !errors.Is(err, issuer.ErrChallengeExpired) {
			return
		}
		if again := c.Again(text); again != text {
			t.Fatalf("%q was taken for %q", text, again)
		}
	})
}

// However a request is spread over headers and body, it is one request, or
// malformed by name.
func FuzzRequestFrom(f *testing.F) {
	for _, h := range hostileFiles(f) {
		header := h.httpHeader()
		f.Add(strings.Join(header.Values(server.HeaderCSR), "\n"), header.Get("Content-Type"), header.Get(server.HeaderChallenge), header.Get(server.HeaderSignature), h.body)
	}
	f.Fuzz(func(t *testing.T, csrs, kind, challenge, signature string, body []byte) {
		header := http.Header{}
		set := func(name, values string) {
			if values != "" {
				header[textproto.CanonicalMIMEHeaderKey(name)] = strings.Split(values, "\n")
			}
		}
		set(server.HeaderCSR, csrs)
		set("Content-Type", kind)
		set(server.HeaderChallenge, challenge)
		set(server.HeaderSignature, signature)
		r, err := server.RequestFrom(header, body)
		if err != nil {
			mustBeMalformed(t, err)
			return
		}
		if headers := len(header.Values(server.HeaderCSR)); headers > 1 || (headers == 1) == (len(body) > 0) || r.DER() == nil {
			t.Fatalf("%d headers and %d bytes of body are one request", headers, len(body))
		}
		if _, err := issuer.Decide(r, nil, issuer.Policy{SKU: issuertest.SKU}, time.Time{}); err == nil {
			t.Fatal("approved without a record")
		}
	})
}
