package certreq

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const deviceID = "4d1f8e27b3c05a9e61f2d47788aabbcc"

func load(t testing.TB, name string) []byte {
	t.Helper()
	der, err := os.ReadFile(filepath.Join("testdata", name+".der"))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Requests of other stacks. Where the key or the signature's algorithm is not
// supported, the request is read all the same.
func TestRequests(t *testing.T) {
	for name, want := range map[string]struct {
		refused   bool
		keyErr    string // part of it: an object identifier or a form
		algorithm x509.SignatureAlgorithm
		oid       string
	}{
		"no-attributes":      {algorithm: x509.ECDSAWithSHA256},
		"t61":                {algorithm: x509.ECDSAWithSHA256},
		"version-2":          {algorithm: x509.ECDSAWithSHA256},
		"version-empty":      {refused: true},
		"plain":              {algorithm: x509.ECDSAWithSHA1},
		"challenge-password": {algorithm: x509.ECDSAWithSHA256},
		"san-dns":            {algorithm: x509.ECDSAWithSHA256},
		"san-broken":         {algorithm: x509.ECDSAWithSHA256},
		"wide-arc-extension": {algorithm: x509.ECDSAWithSHA256},
		"rsa":                {algorithm: x509.SHA256WithRSA},
		"rsa-pss":            {algorithm: x509.SHA256WithRSAPSS},
		"ed25519":            {algorithm: x509.PureEd25519},
		"p256-compressed":    {keyErr: "compressed", algorithm: x509.ECDSAWithSHA256},
		"p256-hybrid":        {keyErr: "hybrid", algorithm: x509.ECDSAWithSHA256},
		"p256-explicit":      {keyErr: "explicit", algorithm: x509.ECDSAWithSHA256},
		"brainpool":          {keyErr: "1.3.36.3.3.2.8.1.1.7", algorithm: x509.ECDSAWithSHA256},
		"secp256k1":          {keyErr: "1.3.132.0.10", algorithm: x509.ECDSAWithSHA256},
		"ed448":              {keyErr: "1.3.101.113", oid: "1.3.101.113"},
		"rsa-pss-key":        {keyErr: "1.2.840.113549.1.1.10", oid: "1.2.840.113549.1.1.10"},
		"sha3":               {oid: "2.16.840.1.101.3.4.3.10"},
	} {
		t.Run(name, func(t *testing.T) {
			der := load(t, name)
			r, err := Parse(der)
			if want.refused {
				if !errors.Is(err, ErrSyntax) {
					t.Fatalf("got %v, want %v", err, ErrSyntax)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if id, n := r.SubjectText("2.5.4.3"); id != deviceID || n != 1 {
				t.Errorf("the common name is %q, %d times", id, n)
			}
			if !bytes.Equal(r.Raw, der) || !bytes.Contains(der, r.TBS) || !bytes.Contains(r.TBS, r.SPKI) || !bytes.Contains(r.TBS, r.RawSubject) {
				t.Error("the raw parts are not those of the request")
			}
			if r.SignatureAlgorithm != want.algorithm || want.oid != "" && r.SignatureOID != want.oid {
				t.Errorf("signed with %v (%s)", r.SignatureAlgorithm, r.SignatureOID)
			}
			if (r.Key == nil) != (want.keyErr != "") || (r.KeyErr == nil) != (want.keyErr == "") ||
				r.KeyErr != nil && !strings.Contains(r.KeyErr.Error(), want.keyErr) {
				t.Errorf("the key is %v, %v", r.Key, r.KeyErr)
			}
			if err := r.CheckSignature(); (err == nil) != (want.keyErr == "" && want.oid == "") {
				t.Errorf("the signature: %v", err)
			}
			changed := bytes.Replace(der, []byte(deviceID), []byte(strings.Repeat("a", 32)), 1)
			if r, err := Parse(changed); err != nil || r.CheckSignature() == nil {
				t.Errorf("with a changed name: %v, or the signature holds", err)
			}
		})
	}
}

// The extensions and attributes of other stacks.
func TestContent(t *testing.T) {
	for name, want := range map[string]struct{ attribute, value, extension string }{
		"challenge-password": {attribute: "1.2.840.113549.1.9.7", value: "hello1"},
		"san-dns":            {attribute: extensionRequest, extension: "2.5.29.17"},
		"san-broken":         {attribute: extensionRequest, extension: "2.5.29.17"},
		"wide-arc-extension": {attribute: extensionRequest, extension: "1.3.6.1.4.1.99999999999.1"},
	} {
		r, err := Parse(load(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Attributes) != 1 || r.Attributes[0].Type != want.attribute || len(r.Attributes[0].Values) != 1 ||
			want.value != "" && string(r.Attributes[0].Values[0].Bytes) != want.value {
			t.Errorf("%s: the attributes are %v", name, r.Attributes)
		}
		if r.ExtensionsErr != nil || want.extension != "" && (len(r.Extensions) != 1 || r.Extensions[0].ID != want.extension || len(r.Extensions[0].Value) == 0) {
			t.Errorf("%s: the extensions are %v, %v", name, r.Extensions, r.ExtensionsErr)
		}
	}
}

// maker builds requests from parts, each of which can be wrong, and signs them.
type maker struct {
	key         *ecdsa.PrivateKey
	version     []byte
	subject     []byte
	spki        []byte
	attributes  []byte // the field [0] as it is; nil: absent
	algorithm   []byte
	tail, inner []byte // after the last element of the request and of its content
	bits        byte   // unused bits of the signature
}

func tlv(tag byte, parts ...[]byte) []byte {
	content := slices.Concat(parts...)
	switch n := len(content); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
	}
}

func oid(t testing.TB, dotted string) []byte {
	t.Helper()
	id, err := x509.ParseOID(dotted)
	if err != nil {
		t.Fatal(err)
	}
	content, err := id.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return tlv(6, content)
}

func name(t testing.TB, dotted string, value []byte) []byte {
	return tlv(0x31, tlv(0x30, oid(t, dotted), value))
}

func testKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	scalar := sha256.Sum256([]byte("certreq"))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newMaker(t testing.TB) *maker {
	t.Helper()
	key := testKey(t)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &maker{
		key: key, version: []byte{2, 1, 0}, subject: tlv(0x30, name(t, "2.5.4.3", tlv(12, []byte(deviceID)))), spki: spki,
		attributes: []byte{0xa0, 0}, algorithm: tlv(0x30, oid(t, "1.2.840.10045.4.3.2")),
	}
}

func (m *maker) der(t testing.TB) []byte {
	t.Helper()
	tbs := tlv(0x30, m.version, m.subject, m.spki, m.attributes, m.inner)
	digest := sha256.Sum256(tbs)
	signature, err := m.key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return tlv(0x30, tbs, m.algorithm, tlv(3, []byte{m.bits}, signature), m.tail)
}

func attribute(t testing.TB, dotted string, values ...[]byte) []byte {
	return tlv(0xa0, tlv(0x30, oid(t, dotted), tlv(0x31, values...)))
}

func extension(t testing.TB, dotted string, middle, value []byte) []byte {
	return tlv(0x30, oid(t, dotted), middle, value)
}

// variant is one deviation from a plain request.
type variant struct {
	name   string
	change func(t testing.TB, m *maker)
	want   error // of Parse; nil: read
	// known says how the standard library or OpenSSL differ on purpose.
	x509Differs, opensslDiffers bool
}

func variants() []variant {
	subject := func(values ...func(t testing.TB) []byte) func(t testing.TB, m *maker) {
		return func(t testing.TB, m *maker) {
			var names [][]byte
			for _, v := range values {
				names = append(names, v(t))
			}
			m.subject = tlv(0x30, names...)
		}
	}
	cn := func(tag byte, value string) func(t testing.TB) []byte {
		return func(t testing.TB) []byte { return name(t, "2.5.4.3", tlv(tag, []byte(value))) }
	}
	raw := func(der ...byte) func(t testing.TB) []byte { return func(testing.TB) []byte { return der } }
	bytesOf := func(to func(m *maker) *[]byte, der ...byte) func(t testing.TB, m *maker) {
		return func(_ testing.TB, m *maker) { *to(m) = der }
	}
	version := func(m *maker) *[]byte { return &m.version }
	attributes := func(m *maker) *[]byte { return &m.attributes }
	extensions := func(list ...func(t testing.TB) []byte) func(t testing.TB, m *maker) {
		return func(t testing.TB, m *maker) {
			var all [][]byte
			for _, e := range list {
				all = append(all, e(t))
			}
			m.attributes = attribute(t, extensionRequest, tlv(0x30, all...))
		}
	}
	keyUsage := func(middle ...byte) func(t testing.TB) []byte {
		return func(t testing.TB) []byte {
			return extension(t, "2.5.29.15", middle, tlv(4, []byte{3, 2, 7, 0x80}))
		}
	}
	return []variant{
		{name: "plain", change: func(testing.TB, *maker) {}},

		{name: "version 1", change: bytesOf(version, 2, 1, 1)},
		{name: "version 2", change: bytesOf(version, 2, 1, 2)},
		{name: "version -1", change: bytesOf(version, 2, 1, 0xff)},
		{name: "version of two bytes", change: bytesOf(version, 2, 2, 1, 0)},
		{name: "version with a leading zero", change: bytesOf(version, 2, 2, 0, 0), want: ErrSyntax},
		{name: "version of length 0", change: bytesOf(version, 2, 0), want: ErrSyntax},
		{name: "version of nine bytes", change: bytesOf(version, 2, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0), want: ErrSyntax, opensslDiffers: true},
		{name: "version as a text", change: bytesOf(version, 12, 1, '0'), want: ErrSyntax},
		{name: "no version", change: bytesOf(version), want: ErrSyntax},

		{name: "no attributes", change: bytesOf(attributes), x509Differs: true},
		{name: "attributes in another field", change: bytesOf(attributes, 0xa1, 0), want: errExtra},
		{name: "attributes as a SET", change: bytesOf(attributes, 0x31, 0), want: errExtra},
		{name: "attributes not constructed", change: bytesOf(attributes, 0x80, 0), want: errExtra, opensslDiffers: true},
		{name: "attribute of an empty set", change: func(t testing.TB, m *maker) { m.attributes = attribute(t, "1.2.840.113549.1.9.7") }},
		{name: "attribute of two values", change: func(t testing.TB, m *maker) {
			m.attributes = attribute(t, "1.2.840.113549.1.9.7", tlv(12, []byte("a")), tlv(12, []byte("b")))
		}},
		{name: "attribute with a wide arc", change: func(t testing.TB, m *maker) { m.attributes = attribute(t, "1.3.6.1.4.1.9999999999", tlv(5)) }},
		{name: "attribute without a set", change: func(t testing.TB, m *maker) {
			m.attributes = tlv(0xa0, tlv(0x30, oid(t, "1.2.3.4"), tlv(12, []byte("a"))))
		}, want: errAttribute, x509Differs: true},
		{name: "attribute without values", change: func(t testing.TB, m *maker) { m.attributes = tlv(0xa0, tlv(0x30, oid(t, "1.2.3.4"))) }, want: errAttribute, x509Differs: true},
		{name: "attribute that is no sequence", change: bytesOf(attributes, 0xa0, 2, 5, 0), want: errAttribute, x509Differs: true},
		{name: "attribute that is cut", change: bytesOf(attributes, 0xa0, 2, 0x30, 1), want: errAttribute},

		{name: "no name", change: subject()},
		{name: "name of an empty set", change: subject(raw(0x31, 0), cn(12, deviceID))},
		{name: "two names", change: subject(cn(12, "a"), cn(12, "b"))},
		{name: "PrintableString", change: subject(cn(19, deviceID))},
		{name: "PrintableString with a wrong letter", change: subject(cn(19, "a@b_c")), x509Differs: true},
		{name: "T61String", change: subject(cn(20, "caf\xe9"))},
		{name: "BMPString", change: subject(cn(30, "\x00a\x00b"))},
		{name: "BMPString of half a letter", change: subject(cn(30, "\x00a\x00")), x509Differs: true, opensslDiffers: true},
		{name: "UniversalString", change: subject(cn(28, "\x00\x00\x00a"))},
		{name: "UTF8String that is none", change: subject(cn(12, "\xff\xfe")), x509Differs: true, opensslDiffers: true},
		{name: "IA5String with eight bits", change: subject(cn(22, "\xe9")), x509Differs: true},
		{name: "NumericString with letters", change: subject(cn(18, "abc")), x509Differs: true},
		{name: "empty name", change: subject(cn(12, ""))},
		{name: "name with a wide arc", change: subject(cn(12, deviceID), func(t testing.TB) []byte { return name(t, "1.3.6.1.4.1.9999999999", tlv(12, []byte("x"))) }), x509Differs: true},
		{name: "name with an arc of 20 digits", change: subject(func(t testing.TB) []byte { return name(t, "2.25.99999999999999999999", tlv(12, []byte("x"))) }), x509Differs: true},
		{name: "name without a value", change: subject(func(t testing.TB) []byte { return tlv(0x31, tlv(0x30, oid(t, "2.5.4.3"))) }), want: errExtra},
		{name: "name with two values", change: subject(func(t testing.TB) []byte {
			return tlv(0x31, tlv(0x30, oid(t, "2.5.4.3"), tlv(12, []byte("a")), tlv(12, []byte("b"))))
		}), want: errExtra, x509Differs: true},
		{name: "name without a set", change: subject(func(t testing.TB) []byte { return tlv(0x30, oid(t, "2.5.4.3"), tlv(12, []byte("a"))) }), want: ErrSyntax},
		{name: "type with a leading 80", change: subject(raw(0x31, 8, 0x30, 6, 6, 2, 0x80, 1, 12, 0)), want: errOID},
		{name: "empty type", change: subject(raw(0x31, 6, 0x30, 4, 6, 0, 12, 0)), want: errOID},
		{name: "subject as a set", change: func(_ testing.TB, m *maker) { m.subject = []byte{0x31, 0} }, want: ErrSyntax},

		{name: "extension", change: extensions(keyUsage())},
		{name: "critical extension", change: extensions(keyUsage(1, 1, 0xff))},
		{name: "explicitly not critical", change: extensions(keyUsage(1, 1, 0))},
		{name: "critical as BER", change: extensions(keyUsage(1, 1, 1)), x509Differs: true},
		{name: "extension twice", change: extensions(keyUsage(), keyUsage()), x509Differs: true},
		{name: "extension with a wide arc", change: extensions(func(t testing.TB) []byte { return extension(t, "1.3.6.1.4.1.9999999999", nil, tlv(4, []byte{5, 0})) }), x509Differs: true},
		{name: "extension without a value", change: extensions(func(t testing.TB) []byte { return tlv(0x30, oid(t, "2.5.29.15")) }), x509Differs: true},
		{name: "extension with more", change: extensions(func(t testing.TB) []byte {
			return extension(t, "2.5.29.15", []byte{1, 1, 0xff}, slices.Concat(tlv(4, []byte{5, 0}), tlv(5)))
		})},
		{name: "extensions that are none", change: func(t testing.TB, m *maker) { m.attributes = attribute(t, extensionRequest, tlv(12, []byte("x"))) }, x509Differs: true},
		{name: "extensions of an empty set", change: func(t testing.TB, m *maker) { m.attributes = attribute(t, extensionRequest) }},
		{name: "alternative name that is none", change: extensions(func(t testing.TB) []byte { return extension(t, "2.5.29.17", nil, tlv(4, []byte{1, 2, 3})) }), x509Differs: true},

		{name: "more in the request", change: func(_ testing.TB, m *maker) { m.tail = []byte{5, 0} }, want: errExtra, x509Differs: true},
		{name: "more in the content", change: func(_ testing.TB, m *maker) { m.inner = []byte{5, 0} }, want: errExtra, x509Differs: true},
		{name: "signature of half a byte", change: func(_ testing.TB, m *maker) { m.bits = 1 }, want: errBits, x509Differs: true},
		{name: "algorithm with NULL", change: func(t testing.TB, m *maker) { m.algorithm = tlv(0x30, oid(t, "1.2.840.10045.4.3.2"), tlv(5)) }},
		{name: "algorithm with more", change: func(t testing.TB, m *maker) {
			m.algorithm = tlv(0x30, oid(t, "1.2.840.10045.4.3.2"), tlv(5), tlv(5))
		}, want: errExtra, x509Differs: true},
		{name: "algorithm without a name", change: func(_ testing.TB, m *maker) { m.algorithm = tlv(0x30) }, want: errExtra},

		{name: "key with more", change: func(_ testing.TB, m *maker) {
			m.spki = tlv(0x30, m.spki[2:], tlv(5))
		}, want: errExtra, x509Differs: true},
		{name: "point off the curve", change: func(_ testing.TB, m *maker) { m.spki = slices.Clone(m.spki); m.spki[len(m.spki)-1] ^= 1 }, want: errPoint},
		{name: "point at infinity", change: func(t testing.TB, m *maker) {
			m.spki = tlv(0x30, tlv(0x30, oid(t, ecPublicKey), oid(t, "1.2.840.10045.3.1.7")), tlv(3, []byte{0, 0}))
		}, want: errPoint},
		{name: "hybrid point of the wrong sign", change: func(_ testing.TB, m *maker) {
			m.spki = slices.Clone(m.spki)
			m.spki[len(m.spki)-65] = 6 + 1 - m.spki[len(m.spki)-1]&1
		}, want: errPoint},
		{name: "compressed point off the curve", change: func(t testing.TB, m *maker) {
			x := make([]byte, 32)
			x[31] = 1 // is the x of no point of P-256
			m.spki = tlv(0x30, tlv(0x30, oid(t, ecPublicKey), oid(t, "1.2.840.10045.3.1.7")), tlv(3, []byte{0, 2}, x))
		}, want: errPoint},
		{name: "key of half a byte", change: func(_ testing.TB, m *maker) {
			m.spki = slices.Clone(m.spki)
			m.spki[len(m.spki)-66], m.spki[len(m.spki)-1] = 1, m.spki[len(m.spki)-1]&^1
		}, want: errBits},
	}
}

// sameAsX509 compares what both read, where both read it.
func sameAsX509(r *Request, x *x509.CertificateRequest) error {
	var names, texts []string
	for _, a := range r.Subject {
		text, ok := a.Text()
		names, texts = append(names, a.Type), append(texts, fmt.Sprint(text, ok))
	}
	var theirNames, theirTexts []string
	for _, a := range x.Subject.Names {
		text, ok := a.Value.(string)
		theirNames, theirTexts = append(theirNames, a.Type.String()), append(theirTexts, fmt.Sprint(text, ok))
	}
	switch {
	case !bytes.Equal(r.Raw, x.Raw), !bytes.Equal(r.TBS, x.RawTBSCertificateRequest), !bytes.Equal(r.RawSubject, x.RawSubject),
		!bytes.Equal(r.SPKI, x.RawSubjectPublicKeyInfo), !bytes.Equal(r.Signature, x.Signature):
		return errors.New("the raw parts differ")
	case !slices.Equal(names, theirNames), !slices.Equal(texts, theirTexts):
		return fmt.Errorf("the names are %q %q, theirs %q %q", names, texts, theirNames, theirTexts)
	case r.SignatureAlgorithm != x.SignatureAlgorithm:
		return fmt.Errorf("the algorithm is %v, theirs %v", r.SignatureAlgorithm, x.SignatureAlgorithm)
	case x.PublicKey != nil && !reflect.DeepEqual(r.Key, x.PublicKey), x.PublicKey == nil && (r.Key != nil || r.KeyErr == nil):
		return fmt.Errorf("the key is %v (%v), theirs %v", r.Key, r.KeyErr, x.PublicKey)
	case (r.CheckSignature() == nil) != (x.CheckSignature() == nil):
		return fmt.Errorf("the signature: %v, theirs %v", r.CheckSignature(), x.CheckSignature())
	}
	if r.ExtensionsErr == nil {
		for i, e := range x.Extensions {
			if ours := r.Extensions[i]; ours.ID != e.Id.String() || ours.Critical != e.Critical || !bytes.Equal(ours.Value, e.Value) {
				return fmt.Errorf("the extension %d is %v, theirs %v", i, ours, e)
			}
		}
	}
	return nil
}

func TestVariants(t *testing.T) {
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			m := newMaker(t)
			v.change(t, m)
			der := m.der(t)
			r, err := Parse(der)
			if !errors.Is(err, v.want) || err != nil && !errors.Is(err, ErrSyntax) {
				t.Fatalf("got %v, want %v", err, v.want)
			}
			theirs, theirErr := x509.ParseCertificateRequest(der)
			if differs := (err == nil) != (theirErr == nil); differs != v.x509Differs {
				t.Fatalf("got %v, crypto/x509 has %v: differs %v, want %v", err, theirErr, differs, v.x509Differs)
			}
			if err != nil {
				return
			}
			if err := r.CheckSignature(); err != nil {
				t.Error(err)
			}
			if theirErr == nil {
				if err := sameAsX509(r, theirs); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestSubjectText(t *testing.T) {
	m := newMaker(t)
	m.subject = tlv(0x30, name(t, "2.5.4.3", tlv(20, []byte(deviceID))), name(t, "2.5.4.11", tlv(30, []byte("\x00a\x00b"))),
		name(t, "2.5.4.10", tlv(19, []byte("a@b"))), name(t, "2.5.4.6", tlv(12, []byte("US"))), name(t, "2.5.4.6", tlv(12, []byte("US"))))
	r, err := Parse(m.der(t))
	if err != nil {
		t.Fatal(err)
	}
	for oid, want := range map[string]struct {
		text  string
		count int
	}{"2.5.4.3": {deviceID, 1}, "2.5.4.11": {"ab", 1}, "2.5.4.10": {"", 1}, "2.5.4.6": {"", 2}, "2.5.4.7": {"", 0}} {
		if text, count := r.SubjectText(oid); text != want.text || count != want.count {
			t.Errorf("%s is %q, %d times, want %q, %d", oid, text, count, want.text, want.count)
		}
	}
}

func TestTooLong(t *testing.T) {
	m := newMaker(t)
	m.subject = tlv(0x30, name(t, "2.5.4.3", tlv(12, bytes.Repeat([]byte("a"), MaxBytes))))
	if _, err := Parse(m.der(t)); !errors.Is(err, ErrSyntax) {
		t.Errorf("got %v, want %v", err, ErrSyntax)
	}
}

// OpenSSL verifies what this package verifies, and the reverse: every request
// that `openssl req -verify` takes is read here.
func TestOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no openssl in CI: install the package openssl")
		}
		t.Skip("no openssl: install it to compare requests with `openssl req -verify`")
	}
	verifies := func(der []byte) bool {
		command := exec.CommandContext(t.Context(), openssl, "req", "-inform", "DER", "-verify", "-noout")
		command.Stdin = bytes.NewReader(der)
		out, err := command.CombinedOutput()
		return err == nil && bytes.Contains(out, []byte("verify OK"))
	}
	files, err := filepath.Glob("testdata/*.der")
	if err != nil || len(files) == 0 {
		t.Fatalf("no requests in testdata: %v", err)
	}
	for _, file := range files {
		der := load(t, strings.TrimSuffix(filepath.Base(file), ".der"))
		r, err := Parse(der)
		if verifies(der) && err != nil {
			t.Errorf("%s: openssl verifies it, and it is not read: %v", file, err)
		}
		if err == nil && r.CheckSignature() == nil && !verifies(der) {
			t.Errorf("%s: verified here, and not by openssl", file)
		}
	}
	for _, v := range variants() {
		m := newMaker(t)
		v.change(t, m)
		der := m.der(t)
		r, err := Parse(der)
		ours, theirs := err == nil && r.CheckSignature() == nil, verifies(der)
		if (ours != theirs) != v.opensslDiffers {
			t.Errorf("%s: verified here %v (%v), by openssl %v", v.name, ours, err, theirs)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.der")
	if err != nil || len(files) == 0 {
		f.Fatalf("no requests in testdata: %v", err)
	}
	for _, file := range files {
		f.Add(load(f, strings.TrimSuffix(filepath.Base(file), ".der")))
	}
	for _, v := range variants() {
		m := newMaker(f)
		v.change(f, m)
		f.Add(m.der(f))
	}
	f.Fuzz(compare)
}

// compare checks the promises over any bytes: what the standard library reads
// is read alike or is refused for a known strictness; what it refuses is read
// for a known liberty only.
func compare(t *testing.T, der []byte) {
	r, err := Parse(der)
	x, theirErr := x509.ParseCertificateRequest(der)
	switch {
	case err != nil && !errors.Is(err, ErrSyntax):
		t.Fatalf("an error without its kind: %v", err)
	case err != nil && theirErr == nil:
		for _, strict := range []error{errExtra, errElement, errBits, errAttribute, errOID} {
			if errors.Is(err, strict) {
				return
			}
		}
		if len(der) <= MaxBytes {
			t.Fatalf("crypto/x509 reads it: %v", err)
		}
	case err == nil && theirErr == nil:
		if err := sameAsX509(r, x); err != nil {
			t.Fatal(err)
		}
	case err == nil:
		if !liberty(r) {
			t.Fatalf("crypto/x509 refuses it: %v", theirErr)
		}
	}
	if err != nil {
		return
	}
	if (r.Key == nil) == (r.KeyErr == nil) || r.ExtensionsErr != nil && r.Extensions != nil {
		t.Fatalf("the key is %v and %v, the extensions %v and %v", r.Key, r.KeyErr, r.Extensions, r.ExtensionsErr)
	}
	if again, err := Parse(bytes.Clone(r.Raw)); err != nil || !bytes.Equal(again.TBS, r.TBS) || !bytes.Equal(r.Raw, der) {
		t.Fatalf("a second time: %v", err)
	}
	if _, err := Parse(append(bytes.Clone(der), 0)); err == nil {
		t.Fatal("a byte after it was taken")
	}
}

// liberty reports whether r has a deviation that is read on purpose.
func liberty(r *Request) bool {
	content, err := constructed(r.TBS, asn1.TagSequence)
	if err != nil || len(content) == 3 || r.KeyErr != nil || r.ExtensionsErr != nil || wide(r.SignatureOID) {
		return true
	}
	for _, a := range r.Subject {
		var value any
		if _, err := asn1.Unmarshal(a.Value.FullBytes, &value); err != nil || wide(a.Type) {
			return true
		}
	}
	asked := map[string]bool{}
	for _, e := range r.Extensions {
		if asked[e.ID] || wide(e.ID) || e.ID == "2.5.29.17" {
			return true
		}
		asked[e.ID] = true
	}
	return false
}

// wide reports whether an arc does not fit into 31 bits.
func wide(oid string) bool {
	var id asn1.ObjectIdentifier
	parsed, err := x509.ParseOID(oid)
	if err != nil {
		return true
	}
	content, err := parsed.MarshalBinary()
	if err != nil {
		return true
	}
	_, err = asn1.Unmarshal(tlv(6, content), &id)
	return err != nil
}

// Requests with a few bytes changed, in the ordinary tests.
func TestMutations(t *testing.T) {
	var seeds [][]byte
	for _, v := range variants() {
		m := newMaker(t)
		v.change(t, m)
		seeds = append(seeds, m.der(t))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		der := bytes.Clone(seeds[random.IntN(len(seeds))])
		for range 1 + random.IntN(3) {
			der[random.IntN(len(der))] = byte(random.Uint32())
		}
		compare(t, der)
	}
}
