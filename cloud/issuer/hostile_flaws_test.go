package issuer_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/server"
	"secretfree/station/board"
)

type flaw struct {
	name, want, about string
	spoil             func(m *making)
}

// flaws are the files of the corpus.
func flaws() []flaw {
	return slices.Concat(goodOnes(), flawsOfForm(), flawsOfKey(), flawsOfNames(), flawsOfRecord(), flawsOfFreshness(), flawsAtOtherDoors())
}

func goodOnes() []flaw {
	return []flaw{
		{"plain", "approved", "Nothing is wrong: what stock firmware sends.", func(*making) {}},
		{"plain-body", "approved", "Nothing is wrong, and the request is in the body, as DER.", func(m *making) { m.inBody() }},
		{"fresh", "approved", "Nothing is wrong, and it answers a challenge.", func(m *making) {
			text := m.challenge()
			m.policy = []string{"require_challenge = true"}
			m.answered(text, m.board.Answer(m.t, text, crypto.SHA256))
		}},
		{"no-attributes", "approved", "No field for attributes, which some firmware leaves out where it is empty.", func(m *making) {
			m.content(func(c *content) { c.Attributes = asn1.RawValue{} })
		}},
		{"version-2", "approved", "Another version, which identifies nothing.", func(m *making) {
			m.content(func(c *content) { c.Version = asn1.RawValue{FullBytes: []byte{2, 1, 2}} })
		}},
		{"cn-t61", "approved", "The name as a T61String.", func(m *making) {
			m.csr.Subject[0] = issuertest.Name(oid(2, 5, 4, 3), asn1.TagT61String, m.board.ID.String())
		}},
		{"organization-of-wrong-letters", "approved", "A PrintableString with letters that it may not have, which is ignored.", func(m *making) {
			m.csr.Subject = append(m.csr.Subject, issuertest.Name(oid(2, 5, 4, 10), asn1.TagPrintableString, "a_b@c"))
		}},
		{"wide-arc-extension", "approved", "An unknown extension whose name has a number over 31 bits.", func(m *making) {
			m.csr.Raw = [][]byte{m.extensionRequest(wideExtension)}
		}},
		{"octet-stream", "approved", "The type that clients give to bytes of which they know no more.", func(m *making) {
			m.inBody()
			m.head = []string{"content-type: application/octet-stream"}
		}},
		{"body-with-bom", "approved", "PEM after the byte order mark of UTF-8.", func(m *making) {
			m.inBodyPEM()
			m.body = append([]byte("\ufeff"), m.body...)
		}},
		{"body-with-nul", "approved", "PEM with the NUL of a string in C.", func(m *making) { m.inBodyPEM(); m.body = append(m.body, 0) }},
		{"body-of-wrapped-base64", "approved", "Base64 of DER in lines, as openssl and base64 write it.", func(m *making) {
			m.inBodyPEM()
			lines := strings.Split(strings.TrimSpace(string(m.body)), "\n")
			m.body = []byte(strings.Join(lines[1:len(lines)-1], "\r\n") + "\r\n")
		}},
		{"est-pem", "approved", "PEM over EST, which some clients send.", func(m *making) { m.inBodyPEM(); m.path = "/.well-known/est/simpleenroll" }},
		{"ignored-wishes", "approved", "It asks for an organization and extensions, which are ignored, and nests an attribute deeply.", func(m *making) {
			m.csr.Subject = append(m.csr.Subject, issuertest.Name(oid(2, 5, 4, 10), asn1.TagUTF8String, "Smuggled"))
			m.csr.Extensions = []issuertest.Extension{{ID: oid(1, 2, 3, 4), Critical: true, Value: []byte("Smuggled")}}
			nested := []byte{0x05, 0x00}
			for range 250 {
				nested = issuertest.MustASN1(m.t, []asn1.RawValue{{FullBytes: nested}}, "")
			}
			m.csr.Raw = [][]byte{issuertest.MustASN1(m.t, struct {
				ID     asn1.ObjectIdentifier
				Values []asn1.RawValue `asn1:"set"`
			}{oid(1, 2, 3, 5), []asn1.RawValue{{FullBytes: nested}}}, "")}
			m.inBody()
		}},
	}
}

func flawsOfForm() []flaw {
	return []flaw{
		{"nothing", "no-request", "Neither a header nor a body.", func(m *making) { m.head = []string{} }},
		{"empty-header", "not-one-pem", "The header is there, and empty.", func(m *making) { m.head = []string{server.HeaderCSR + ": "} }},
		{"header-and-body", "two-requests", "The same request in the header and in the body.", func(m *making) {
			m.body, _ = m.bytes()
			m.extra = []string{bodyType}
		}},
		{"two-headers", "two-requests", "The header twice: the first might be checked and the second signed.", func(m *making) {
			m.extra = []string{newSimulatedHeader(m)}
		}},
		{"two-headers-in-other-case", "two-requests", "The header twice, in another case.", func(m *making) {
			m.extra = []string{strings.Replace(newSimulatedHeader(m), server.HeaderCSR, "Device-CSR", 1)}
		}},
		{"two-answers", "two-requests", "Two signatures over a challenge.", func(m *making) {
			text := m.challenge()
			m.answered(text, m.board.Answer(m.t, text, crypto.SHA256))
			m.extra = append(m.extra, server.HeaderSignature+": AAAA")
		}},
		{"two-content-types", "content-type", "A body of two types: readers differ about which counts.", func(m *making) {
			m.inBody()
			m.head = append(m.head, "content-type: application/json")
		}},
		{"no-content-type", "content-type", "A body without a type.", func(m *making) { m.inBody(); m.head = []string{} }},
		{"json-body", "content-type", "A body of JSON.", func(m *making) {
			m.head, m.body = []string{"content-type: application/json"}, []byte("{\"device-csr\": \"MIIB\"}\n")
		}},
		{"header-of-12-kb", "too-large", "A header of 12 KB.", func(m *making) { m.head = []string{server.HeaderCSR + ": " + strings.Repeat("QUFB", 3<<10)} }},
		{"body-of-12-kb", "too-large", "A body of 12 KB.", func(m *making) { m.head, m.body = []string{bodyType}, bytes.Repeat([]byte("0"), 12<<10) }},
		{"der-above-the-cap", "too-large", "An extension makes the request larger than 4 KB.", func(m *making) {
			m.csr.Extensions = []issuertest.Extension{{ID: oid(1, 2, 3), Value: make([]byte, issuer.MaxDER)}}
			m.inBody()
		}},
		{"hundred-subject-attributes", "too-large", "A subject of a hundred units.", func(m *making) {
			m.csr.Subject = append(m.csr.Subject, repeat(100, func(i int) []issuertest.NameAttribute { return m.unit(fmt.Sprintf("u%d", i)) })...)
			m.inBody()
		}},
		{"hundred-attributes-in-one-set", "too-large", "A relative distinguished name of a hundred units.", func(m *making) {
			var all []issuertest.NameAttribute
			for i := range 100 {
				all = append(all, m.unit(fmt.Sprintf("u%02d", i))...)
			}
			m.csr.Subject = append(m.csr.Subject, all)
			m.inBody()
		}},
		{"two-hundred-extensions", "too-large", "It asks for two hundred extensions.", func(m *making) {
			m.csr.Extensions = repeat(200, func(i int) issuertest.Extension {
				return issuertest.Extension{ID: oid(1, 2, 3, i), Value: []byte{5, 0}}
			})
			m.inBody()
		}},
		{"two-hundred-attributes", "too-large", "It has two hundred attributes beside its subject.", func(m *making) {
			m.csr.Raw = repeat(200, func(i int) []byte {
				return issuertest.MustASN1(m.t, struct {
					ID     asn1.ObjectIdentifier
					Values []int `asn1:"set"`
				}{oid(1, 2, 3, i), []int{1}}, "")
			})
			m.inBody()
		}},
		{"line-break-in-base64", "not-base64", "A blank inside the base64 of the header, where a line was unfolded.", func(m *making) {
			h := m.inHeader()
			m.head = []string{h[:100] + " " + h[100:]}
		}},
		{"base64-without-padding", "not-base64", "The base64 of the header has lost its padding.", func(m *making) {
			m.pem = func(text []byte) []byte { return append(text, bytes.Repeat([]byte("\n"), 1+(3-(len(text)+2)%3)%3)...) }
			h := m.inHeader()
			if !strings.HasSuffix(h, "=") {
				m.t.Fatal("there is no padding")
			}
			m.head = []string{strings.TrimRight(h, "=")}
		}},
		{"base64-with-loose-bits", "not-base64", "The last character of the base64 has bits that mean nothing: two texts for one request.", func(m *making) {
			m.head, m.body = []string{bodyType}, []byte("MIIBTUF=\n")
		}},
		{"base64url", "not-base64", "The other alphabet of base64.", func(m *making) {
			der, _ := m.bytes()
			text := base64.URLEncoding.EncodeToString(der)
			if !strings.ContainsAny(text, "-_") {
				m.t.Fatal("it is both")
			}
			m.head, m.body = []string{bodyType}, []byte(text+"\n")
		}},
		{"garbage", "not-base64", "No request at all.", func(m *making) { m.head, m.body = []string{bodyType}, []byte("' OR 1=1; --\n") }},
		{"base64-of-der-in-the-header", "not-one-pem", "The header has no PEM in it.", func(m *making) {
			der, _ := m.bytes()
			m.head = []string{server.HeaderCSR + ": " + base64.StdEncoding.EncodeToString(der)}
		}},
		{"pem-with-headers", "not-one-pem", "A PEM block with headers of its own.", func(m *making) {
			m.pem = func(text []byte) []byte {
				return bytes.Replace(text, []byte("-----\n"), []byte("-----\nProc-Type: 4,ENCRYPTED\n\n"), 1)
			}
		}},
		{"two-blocks", "not-one-pem", "Two PEM blocks, of two boards.", func(m *making) {
			other := issuertest.NewBoard(m.t).CSR().PEM(m.t)
			m.pem = func(text []byte) []byte { return append(text, other...) }
		}},
		{"broken-block-before", "not-one-pem", "A block that cannot be read before a good one: some readers step over it.", func(m *making) {
			m.pem = func(text []byte) []byte {
				return append([]byte("-----BEGIN CERTIFICATE REQUEST-----\n!\n-----END CERTIFICATE REQUEST-----\n"), text...)
			}
		}},
		{"body-with-text-before", "not-one-pem", "A body as openssl req -text writes it.", func(m *making) {
			m.inBodyPEM()
			m.body = append([]byte("Certificate Request:\n    Data:\n        Version: 1 (0x0)\n"), m.body...)
		}},
		{"body-with-two-nuls", "not-one-pem", "PEM and more than the one NUL of a string.", func(m *making) { m.inBodyPEM(); m.body = append(m.body, 0, 0) }},
		{"folded-header", "not-base64", "A header that was folded, as GNU base64 wraps it.", func(m *making) {
			_, text := m.bytes()
			value := base64.StdEncoding.EncodeToString(text)
			m.head = []string{server.HeaderCSR + ": " + value[:76] + " " + value[76:]}
		}},
		{"text-before-the-block", "not-one-pem", "Text before the block, which many readers step over.", func(m *making) {
			m.pem = func(text []byte) []byte { return append([]byte("CN=admin\n"), text...) }
		}},
		{"text-after-the-block", "not-one-pem", "Text after the block.", func(m *making) {
			m.pem = func(text []byte) []byte { return append(text, "CN=admin\n"...) }
		}},
		{"wrong-label", "not-one-pem", "A block with the label of a certificate.", func(m *making) {
			m.pem = func(text []byte) []byte {
				return bytes.ReplaceAll(text, []byte("CERTIFICATE REQUEST"), []byte("CERTIFICATE"))
			}
			m.inBodyPEM()
		}},
		{"private-key-label", "not-one-pem", "A block with the label of a private key.", func(m *making) {
			m.pem = func(text []byte) []byte {
				return bytes.ReplaceAll(text, []byte("CERTIFICATE REQUEST"), []byte("EC PRIVATE KEY"))
			}
			m.inBodyPEM()
		}},
		{"labels-that-differ", "not-one-pem", "A block that ends as another than it began.", func(m *making) {
			m.pem = func(text []byte) []byte { return bytes.Replace(text, []byte("BEGIN C"), []byte("BEGIN NEW C"), 1) }
			m.inBodyPEM()
		}},
		{"trailing-bytes", "not-a-request", "A byte after the DER.", func(m *making) {
			m.der = func(der []byte) []byte { return append(der, 0) }
		}},
		{"cut-short", "not-a-request", "The DER lacks its last byte.", func(m *making) {
			m.der = func(der []byte) []byte { return der[:len(der)-1] }
			m.inBody()
		}},
		{"indefinite-length", "not-a-request", "BER: the outermost length is indefinite.", func(m *making) {
			m.der = func(der []byte) []byte {
				var outer asn1.RawValue
				if _, err := asn1.Unmarshal(der, &outer); err != nil {
					m.t.Fatal(err)
				}
				return slices.Concat([]byte{0x30, 0x80}, outer.Bytes, []byte{0, 0})
			}
			m.inBody()
		}},
		{"long-form-length", "not-a-request", "BER: a length in more bytes than it needs.", func(m *making) {
			m.der = func(der []byte) []byte {
				var outer asn1.RawValue
				if _, err := asn1.Unmarshal(der, &outer); err != nil {
					m.t.Fatal(err)
				}
				n := len(outer.Bytes)
				return slices.Concat([]byte{0x30, 0x83, 0, byte(n >> 8), byte(n)}, outer.Bytes)
			}
			m.inBody()
		}},
		{"a-certificate", "not-a-request", "A certificate of the board, where its request should be.", func(m *making) {
			template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: corpusClock}
			der, err := x509.CreateCertificate(nil, template, template, m.board.Key.Public(), m.board.Key)
			if err != nil {
				m.t.Fatal(err)
			}
			m.head, m.body = []string{bodyType}, der
		}},
		{"extension-twice", "not-a-request", "CA:FALSE, and then CA:TRUE.", func(m *making) {
			m.csr.Extensions = []issuertest.Extension{{ID: oid(2, 5, 29, 19), Value: []byte{0x30, 0}}, {ID: oid(2, 5, 29, 19), Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}
		}},
		{"more-after-the-signature", "not-a-request", "Another element after the signature, which many readers step over.", func(m *making) {
			m.der = func(der []byte) []byte {
				var outer asn1.RawValue
				if _, err := asn1.Unmarshal(der, &outer); err != nil {
					m.t.Fatal(err)
				}
				return issuertest.MustASN1(m.t, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: append(outer.Bytes, 0x05, 0)}, "")
			}
		}},
		{"signature-of-half-a-byte", "not-a-request", "A signature that is not of whole bytes.", func(m *making) {
			m.der = func(der []byte) []byte {
				var outer struct {
					Info, Algorithm asn1.RawValue
					Signature       asn1.BitString
				}
				if _, err := asn1.Unmarshal(der, &outer); err != nil {
					m.t.Fatal(err)
				}
				outer.Signature.BitLength -= 4
				outer.Signature.Bytes[len(outer.Signature.Bytes)-1] &= 0xf0
				return issuertest.MustASN1(m.t, outer, "")
			}
		}},
		{"version-empty", "not-a-request", "A version without a number.", func(m *making) { m.content(func(c *content) { c.Version = asn1.RawValue{FullBytes: []byte{2, 0}} }) }},
		{"attribute-without-a-set", "not-a-request", "An attribute whose value stands in no set.", func(m *making) {
			m.csr.Raw = append(m.csr.Raw, issuertest.MustASN1(m.t, struct {
				ID    asn1.ObjectIdentifier
				Value int
			}{oid(1, 2, 3, 4), 1}, ""))
		}},
		{"two-passwords-in-one", "not-a-request", "A challengePassword of two values.", func(m *making) { m.csr.Passwords = []string{m.challenge(), m.challenge()} }},
		{"challenge-without-signature", "no-signature", "A challenge beside the request, and no signature over it.", func(m *making) {
			m.extra = []string{server.HeaderChallenge + ": " + m.challenge()}
		}},
		{"signature-without-challenge", "no-signature", "A signature over nothing.", func(m *making) { m.extra = []string{server.HeaderSignature + ": AAAA"} }},
		{"signature-not-base64", "not-base64", "The signature over the challenge is no base64.", func(m *making) { m.answered(m.challenge(), "%%%%") }},
		{"challenge-too-long", "too-large", "A challenge longer than any.", func(m *making) { m.answered(strings.Repeat("A", issuer.MaxChallenge+1), "AAAA") }},
	}
}

// newSimulatedHeader is the request of another board under the name of this
// one.
func newSimulatedHeader(m *making) string {
	c := issuertest.NewBoard(m.t).CSR()
	c.Subject = m.csr.Subject
	return server.HeaderCSR + ": " + c.Header(m.t)
}

func flawsOfKey() []flaw {
	p256 := oid(1, 2, 840, 10045, 3, 1, 7)
	return []flaw{
		{"rsa-1024", "key-type", "RSA of 1024 bits, where the policy allows RSA.", func(m *making) { m.rsa(1024); m.policy = []string{`algorithms = ["RSA"]`} }},
		{"rsa-where-not-allowed", "key-type", "RSA of 2048 bits, which the policy does not allow.", func(m *making) { m.rsa(2048) }},
		{"rsa-exponent-1", "key-type", "RSA with the exponent 1: everything signs for itself.", func(m *making) {
			m.csr.Public = &rsa.PublicKey{N: m.rsaKey(2048).N, E: 1}
			m.policy = []string{`algorithms = ["RSA"]`}
			m.inBody()
		}},
		{"rsa-exponent-even", "key-type", "RSA with an even exponent, which is no key.", func(m *making) {
			m.csr.Public = &rsa.PublicKey{N: m.rsaKey(2048).N, E: 4}
			m.policy = []string{`algorithms = ["RSA"]`}
			m.inBody()
		}},
		{"p-384", "key-type", "Another curve, enrolled, which the policy does not allow.", func(m *making) { m.curve(elliptic.P384()) }},
		{"p-521", "key-type", "A curve that no policy allows.", func(m *making) { m.csr.Key = m.ecKey(elliptic.P521()) }},
		{"ed25519", "key-type", "A key that no board has.", func(m *making) {
			m.spki(issuertest.MustASN1(m.t, struct {
				Algorithm struct{ ID asn1.ObjectIdentifier }
				Key       asn1.BitString
			}{struct{ ID asn1.ObjectIdentifier }{oid(1, 3, 101, 112)}, asn1.BitString{Bytes: m.point(false)[1:33], BitLength: 256}}, ""))
		}},
		{"secp256k1", "key-type", "A curve that is as long as P-256 and is another.", func(m *making) { m.spki(m.onCurve(oid(1, 3, 132, 0, 10), m.point(false))) }},
		{"point-off-the-curve", "not-a-request", "The key is no point of the curve.", func(m *making) {
			point := m.point(false)
			point[40] ^= 1
			m.spki(m.onCurve(p256, point))
		}},
		{"point-at-infinity", "not-a-request", "The key is the point at infinity, which signs for everything.", func(m *making) { m.spki(m.onCurve(p256, []byte{0})) }},
		{"compressed-point", "key-type", "The right key in the short form: a second encoding of the same.", func(m *making) { m.spki(m.onCurve(p256, m.point(true))) }},
		{"hybrid-point", "key-type", "The right key in the hybrid form: a third encoding of the same.", func(m *making) {
			point := m.point(false)
			point[0] = 6 + point[64]&1
			m.spki(m.onCurve(p256, point))
		}},
		{"brainpool", "key-type", "Another curve of 256 bits.", func(m *making) {
			m.spki(m.onCurve(oid(1, 3, 36, 3, 3, 2, 8, 1, 1, 7), m.point(false)))
		}},
		{"explicit-curve", "key-type", "The curve is given by parameters, and the generator could be anyone's.", func(m *making) {
			m.spki(issuertest.MustASN1(m.t, struct {
				Algorithm struct {
					ID    asn1.ObjectIdentifier
					Curve struct{ Version, Prime int }
				}
				Point asn1.BitString
			}{struct {
				ID    asn1.ObjectIdentifier
				Curve struct{ Version, Prime int }
			}{oid(1, 2, 840, 10045, 2, 1), struct{ Version, Prime int }{1, 23}}, asn1.BitString{Bytes: m.point(false), BitLength: 8 * 65}}, ""))
		}},
		{"implicit-curve", "key-type", "No curve at all: the one that the reader thinks of.", func(m *making) {
			m.spki(issuertest.MustASN1(m.t, struct {
				Algorithm struct{ ID asn1.ObjectIdentifier }
				Point     asn1.BitString
			}{struct{ ID asn1.ObjectIdentifier }{oid(1, 2, 840, 10045, 2, 1)}, asn1.BitString{Bytes: m.point(false), BitLength: 8 * 65}}, ""))
		}},
		{"hybrid-point-of-the-wrong-sign", "not-a-request", "The hybrid form contradicts itself.", func(m *making) {
			point := m.point(false)
			point[0] = 6 + (point[64]&1 ^ 1)
			m.spki(m.onCurve(p256, point))
		}},
		{"key-of-no-algorithm", "key-type", "An algorithm of keys that nobody knows.", func(m *making) {
			m.spki(issuertest.MustASN1(m.t, struct {
				Algorithm struct{ ID asn1.ObjectIdentifier }
				Key       asn1.BitString
			}{struct{ ID asn1.ObjectIdentifier }{oid(1, 3, 101, 113)}, asn1.BitString{Bytes: make([]byte, 57), BitLength: 8 * 57}}, ""))
		}},
		{"key-with-more-inside", "not-a-request", "A key with another element after it.", func(m *making) {
			m.spki(issuertest.MustASN1(m.t, struct {
				Algorithm struct{ ID, Curve asn1.ObjectIdentifier }
				Key       asn1.BitString
				More      int
			}{struct{ ID, Curve asn1.ObjectIdentifier }{oid(1, 2, 840, 10045, 2, 1), p256}, asn1.BitString{Bytes: m.point(false), BitLength: 8 * 65}, 1}, ""))
		}},
		{"sha1-where-not-allowed", "signature-algorithm", "Signed with SHA-1, which the policy does not allow.", func(m *making) { m.policy = []string{"refuse_sha1 = true"} }},
		{"unknown-algorithm", "signature-algorithm", "Signed with an algorithm that there is not.", func(m *making) {
			m.swap([]byte{0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01}, []byte{0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x7f})
		}},
		{"spliced-key", "csr-signature", "The public key of an enrolled board under the signature of another: public keys are not secret.", func(m *making) {
			m.csr.Key, m.csr.Public = issuertest.NewBoard(m.t).Key, m.board.Key.Public()
		}},
		{"name-changed-after-signing", "csr-signature", "A board's own request, with the name of another enrolled board.", func(m *making) {
			other := issuertest.NewBoard(m.t)
			m.items = []board.Record{other.Record(m.t, m.station)}
			m.swap([]byte(m.board.ID.String()), []byte(other.ID.String()))
		}},
		{"signature-of-zeros", "csr-signature", "r and s are zero, which careless code takes for a signature of any key.", func(m *making) {
			m.setSignature([]byte{0x30, 0x06, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00})
		}},
		{"signature-empty", "csr-signature", "There is no signature.", func(m *making) { m.setSignature(nil) }},
	}
}

func flawsOfNames() []flaw {
	named := func(tag int, value string) func(m *making) {
		return func(m *making) {
			m.csr.Subject[0] = issuertest.Name(oid(2, 5, 4, 3), tag, strings.ReplaceAll(value, "$ID", m.board.ID.String()))
		}
	}
	const printable, utf8 = asn1.TagPrintableString, asn1.TagUTF8String
	return []flaw{
		{"no-subject", "no-cn", "No subject at all.", func(m *making) { m.csr.Subject = nil }},
		{"subject-without-cn", "no-cn", "A subject without a common name.", func(m *making) { m.csr.Subject = [][]issuertest.NameAttribute{m.unit("Widgets")} }},
		{"two-cns", "several-cn", "The right name, and that of another board.", func(m *making) {
			m.csr.Subject = append(m.csr.Subject, issuertest.CN(issuertest.NewBoard(m.t).ID.String()))
		}},
		{"another-cn-first", "several-cn", "The name of another board, and the right one.", func(m *making) {
			m.csr.Subject = [][]issuertest.NameAttribute{issuertest.CN(issuertest.NewBoard(m.t).ID.String()), m.csr.Subject[0]}
		}},
		{"same-cn-twice", "several-cn", "The right name, twice.", func(m *making) { m.csr.Subject = append(m.csr.Subject, m.csr.Subject[0]) }},
		{"two-cns-in-one-set", "several-cn", "Two names in one relative distinguished name.", func(m *making) { m.csr.Subject[0] = append(m.csr.Subject[0], issuertest.CN("x")...) }},
		{"cn-empty", "cn-not-a-device-id", "An empty name.", named(printable, "")},
		{"cn-short", "cn-not-a-device-id", "A name as sample devices have it.", named(printable, "1111")},
		{"cn-upper-case", "cn-not-a-device-id", "The right digits in upper case: a second name for one device.", func(m *making) {
			m.board.ID[0] = 0xab
			m.record = m.board.Record(m.t, m.station)
			m.csr.Subject[0] = issuertest.CN(strings.ToUpper(m.board.ID.String()))
		}},
		{"cn-with-nul", "cn-not-a-device-id", "A NUL after the right name, where some readers stop.", named(utf8, "$ID\x00")},
		{"cn-with-space", "cn-not-a-device-id", "A blank after the right name.", named(printable, "$ID ")},
		{"cn-with-line-break", "cn-not-a-device-id", "A line break and a made up line of a log after the right name.", named(utf8, "$ID\n{\"outcome\":\"issued\"}")},
		{"cn-look-alike", "cn-not-a-device-id", "The first letter is Cyrillic.", func(m *making) {
			m.board.ID[0] = 0xab
			m.record = m.board.Record(m.t, m.station)
			m.csr.Subject[0] = issuertest.Name(oid(2, 5, 4, 3), utf8, "а"+m.board.ID.String()[1:])
		}},
		{"cn-path", "cn-not-a-device-id", "A name that leads out of a folder.", named(printable, "../../../../../../etc/passwd.....")},
		{"cn-wildcard", "cn-not-a-device-id", "A name that a policy might read as a wildcard.", named(utf8, "*")},
		{"cn-guard", "cn-not-a-device-id", "The name of the other kind of item in the table.", func(m *making) {
			m.csr.Subject[0] = issuertest.Name(oid(2, 5, 4, 3), utf8, "key:"+m.record.Fingerprint().String())
		}},
		{"cn-zeros", "cn-not-a-device-id", "The id of a board that has none.", named(printable, strings.Repeat("0", 32))},
		{"cn-two-byte-characters", "cn-not-a-device-id", "The right name in two-byte characters.", func(m *making) {
			var wide []byte
			for _, c := range []byte(m.board.ID.String()) {
				wide = append(wide, 0, c)
			}
			m.csr.Subject[0] = issuertest.Name(oid(2, 5, 4, 3), asn1.TagBMPString, string(wide))
		}},
		{"cn-not-a-string", "cn-not-a-device-id", "The right name as a string of octets.", named(asn1.TagOctetString, "$ID")},
		{"serial-number", "extra-names", "A second identity in the subject.", func(m *making) {
			m.csr.Subject = append(m.csr.Subject, issuertest.Name(oid(2, 5, 4, 5), printable, "1111"))
		}},
		{"domain-component", "extra-names", "A domain in the subject.", func(m *making) {
			m.csr.Subject = append(m.csr.Subject, issuertest.Name(oid(0, 9, 2342, 19200300, 100, 1, 25), asn1.TagIA5String, "example"))
		}},
		{"san-dns", "extra-names", "An alternative name: a host.", func(m *making) {
			m.csr.Extensions = san(append([]byte{0x30, 0x0d, 0x82, 0x0b}, "example.com"...)...)
		}},
		{"san-registered-id", "extra-names", "An alternative name of a kind that parsers pass over.", func(m *making) {
			m.csr.Extensions = san(0x30, 0x05, 0x88, 0x03, 0x2a, 0x03, 0x04)
		}},
		{"san-other-name", "extra-names", "An alternative name: a user principal name.", func(m *making) {
			upn := issuertest.MustASN1(m.t, struct {
				ID    asn1.ObjectIdentifier
				Value string `asn1:"tag:0,explicit,utf8"`
			}{oid(1, 3, 6, 1, 4, 1, 311, 20, 2, 3), "root@example.com"}, "tag:0")
			m.csr.Extensions = san(append([]byte{0x30, byte(len(upn))}, upn...)...)
		}},
		{"san-empty", "extra-names", "An alternative name that is none.", func(m *making) { m.csr.Extensions = san(0x30, 0) }},
		{"san-broken", "extra-names", "An alternative name whose content is none.", func(m *making) { m.csr.Extensions = san(0x01, 0x02, 0x03) }},
		{"san-of-no-letters", "extra-names", "An alternative name: a host of bytes that are no letters.", func(m *making) {
			m.csr.Extensions = san(0x30, 0x04, 0x82, 0x02, 0xff, 0xfe)
		}},
		{"san-in-a-second-list", "extra-names", "An alternative name in the second of two lists of extensions: some readers see the first only.", func(m *making) {
			list := func(e issuertest.Extension) []byte { return issuertest.MustASN1(m.t, []issuertest.Extension{e}, "") }
			m.csr.Raw = [][]byte{m.extensionRequest(list(issuertest.Extension{ID: oid(1, 2, 3, 4), Value: []byte{5, 0}}), list(san(0x30, 0)[0]))}
		}},
		{"extensions-that-are-none", "extra-names", "A text instead of extensions: nobody knows which names it asks for.", func(m *making) {
			m.csr.Raw = [][]byte{m.extensionRequest([]byte{12, 1, 'x'})}
		}},
		{"wide-arc-attribute", "extra-names", "An attribute of the subject whose name has a number over 31 bits.", func(m *making) {
			m.content(func(c *content) {
				set := slices.Concat([]byte{0x31, 0x0d, 0x30, 0x0b}, wideOID, []byte{12, 0})
				c.Subject = asn1.RawValue{FullBytes: issuertest.MustASN1(m.t, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true,
					Bytes: slices.Concat(c.Subject.Bytes, set)}, "")}
			})
		}},
		{"ca-true", "ca-requested", "It asks to be a CA.", func(m *making) {
			m.csr.Extensions = []issuertest.Extension{{ID: oid(2, 5, 29, 19), Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}
		}},
		{"ca-true-with-path", "ca-requested", "It asks to be a CA of one more.", func(m *making) {
			m.csr.Extensions = []issuertest.Extension{{ID: oid(2, 5, 29, 19), Value: []byte{0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, 0x01}}}
		}},
		{"ca-in-ber", "ca-requested", "It asks to be a CA with a truth that DER does not know.", func(m *making) {
			m.csr.Extensions = []issuertest.Extension{{ID: oid(2, 5, 29, 19), Value: []byte{0x30, 0x03, 0x01, 0x01, 0x01}}}
		}},
	}
}

func flawsOfRecord() []flaw {
	state := func(state string) func(m *making) {
		return func(m *making) { m.change = func(item map[string]any) { item["state"] = state } }
	}
	return []flaw{
		{"not-enrolled", "not-enrolled", "No factory saw this board; another is enrolled.", func(m *making) {
			m.absent = true
			m.items = []board.Record{issuertest.NewBoard(m.t).Record(m.t, m.station)}
		}},
		{"empty-registry", "not-enrolled", "Nothing is enrolled.", func(m *making) { m.absent = true }},
		{"another-key", "key-mismatch", "The name of an enrolled board, with a key of one's own, well signed.", func(m *making) { m.csr.Key = issuertest.NewBoard(m.t).Key }},
		{"key-of-another-board", "key-mismatch", "An enrolled board asks under the name of another.", func(m *making) {
			other := issuertest.NewBoard(m.t)
			m.items = []board.Record{other.Record(m.t, m.station)}
			m.csr.Key = other.Key
		}},
		{"unsigned-record", "no-envelope", "Who can write the table put a key into it, as a loading script would.", func(m *making) {
			m.change = func(item map[string]any) {
				for name := range item {
					if name != "device-id" && name != "pubkey" {
						delete(item, name)
					}
				}
			}
		}},
		{"record-removed", "no-envelope", "All is there but the signed record.", func(m *making) { m.change = func(item map[string]any) { delete(item, "record") } }},
		{"torn-record", "bad-record", "The signed record breaks off.", func(m *making) {
			m.change = func(item map[string]any) { item["record"] = item["record"].(string)[:100] }
		}},
		{"record-of-another-type", "bad-record", "The signed text is not said to be a record.", func(m *making) {
			m.change = func(item map[string]any) {
				item["record"] = strings.Replace(item["record"].(string), "secretfree.record", "secretfree.rumour", 1)
			}
		}},
		{"untrusted-station", "untrusted-record", "Signed by a station that the policy does not name.", func(m *making) {
			rogue := issuertest.NewStation(m.t, issuertest.SKU, "rogue")
			m.record = m.board.Record(m.t, rogue)
			m.seal = func(r board.Record) board.Enrolment { return issuertest.Enrolment(m.t, r, rogue) }
		}},
		{"rogue-key-of-trusted-name", "untrusted-record", "Signed by a key that calls itself a trusted station.", func(m *making) {
			rogue := issuertest.NewStation(m.t, issuertest.SKU, "line3-a")
			m.seal = func(r board.Record) board.Enrolment { return issuertest.Enrolment(m.t, r, rogue) }
		}},
		{"record-changed-after-signing", "untrusted-record", "A record of another board, with the key and the id changed.", func(m *making) {
			other := issuertest.NewBoard(m.t).Record(m.t, m.station)
			was, err := other.Encode()
			if err != nil {
				m.t.Fatal(err)
			}
			now, err := m.record.Encode()
			if err != nil {
				m.t.Fatal(err)
			}
			b64 := base64.StdEncoding.EncodeToString
			envelope := strings.Replace(string(issuertest.Enrolment(m.t, other, m.station).Envelope), b64(was), b64(now), 1)
			m.change = func(item map[string]any) { item["record"] = envelope }
		}},
		{"foreign-sku", "foreign-sku", "A record of another product, by a station that is trusted.", func(m *making) {
			m.station = issuertest.NewStation(m.t, "gadget", "line3-a")
			m.record = m.board.Record(m.t, m.station)
		}},
		{"record-of-another-device", "record-mismatch", "A true record of another board in the item of one's own.", func(m *making) {
			m.envelope(issuertest.Enrolment(m.t, issuertest.NewBoard(m.t).Record(m.t, m.station), m.station))
		}},
		{"record-of-another-key", "record-mismatch", "A true record of this id with another key, and the key beside it exchanged.", func(m *making) {
			twin := issuertest.NewBoard(m.t)
			twin.ID = m.board.ID
			m.envelope(issuertest.Enrolment(m.t, twin.Record(m.t, m.station), m.station))
		}},
		{"generation-raised", "record-mismatch", "The item says that the board was enrolled anew; the record does not.", func(m *making) {
			m.change = func(item map[string]any) { item["generation"] = 2 }
		}},
		{"record-without-proof", "record-proof", "The board proved nothing at the factory, and the policy asks for it.", func(m *making) { m.record.Proof = nil }},
		{"proof-of-another-board", "record-proof", "The proof is that of another board.", func(m *making) { m.record.Proof = issuertest.NewBoard(m.t).Record(m.t, m.station).Proof }},
		{"wrong-proof-where-none-is-needed", "record-proof", "The proof is wrong, and the policy would do without.", func(m *making) {
			m.record.Proof = issuertest.NewBoard(m.t).Record(m.t, m.station).Proof
			m.policy = []string{"allow_no_proof = true"}
		}},
		{"held", "state-held", "The device is held.", state("held")},
		{"scrapped", "state-scrapped", "The device was scrapped.", state("scrapped")},
		{"revoked", "state-revoked", "The device was revoked.", state("revoked")},
		{"old-generation", "generation-too-old", "The policy wants boards that were enrolled anew.", func(m *making) { m.policy = []string{"min_generation = 2"} }},
		{"held-lot", "lot-held", "The boards that the station read in that hour are held.", func(m *making) {
			m.policy = []string{"[[policy.hold]]", `station = "widgiot/line3-a"`, "from = 2026-07-01T12:00:00Z", "to = 2026-07-01T13:00:00Z", `why = "a bad fixture"`}
		}},
		{"item-of-another-device", "try-later", "The item is filed under this device and says that it is of another: damage, not a verdict.", func(m *making) {
			m.change = func(item map[string]any) { item["device-id"] = issuertest.NewBoard(m.t).ID.String() }
		}},
		{"fingerprint-of-another-key", "try-later", "The key in the item is not that of its fingerprint: damage, not a verdict.", func(m *making) {
			m.change = func(item map[string]any) { item["pubkey"] = pubkey(issuertest.NewBoard(m.t).BoardKey(m.t)) }
		}},
		{"key-exchanged", "key-mismatch", "Key and fingerprint were exchanged in the table for a stranger's; the board itself asks.", func(m *making) {
			m.change = func(item map[string]any) {
				key := issuertest.NewBoard(m.t).BoardKey(m.t)
				item["pubkey"], item["key-fingerprint"] = pubkey(key), key.Fingerprint().String()
			}
		}},
		{"key-exchanged-for-the-senders", "record-mismatch", "Key and fingerprint were exchanged in the table for those of the sender.", func(m *making) {
			thief := issuertest.NewBoard(m.t)
			m.csr.Key = thief.Key
			m.change = func(item map[string]any) {
				item["pubkey"], item["key-fingerprint"] = pubkey(thief.BoardKey(m.t)), thief.BoardKey(m.t).Fingerprint().String()
			}
		}},
		{"item-without-key", "try-later", "The item has lost its key: damage, not a verdict.", func(m *making) { m.change = func(item map[string]any) { delete(item, "pubkey") } }},
		{"state-unknown", "try-later", "The item has a state that there is not: damage, not a verdict.", state("blessed")},
		{"item-not-json", "try-later", "The item breaks off: damage, not a verdict.", func(m *making) { m.rawItm = func(data []byte) []byte { return append(data[:len(data)/2], '\n') } }},
	}
}

func flawsOfFreshness() []flaw {
	password := func(challenge func(m *making) string) func(m *making) {
		return func(m *making) { m.csr.Passwords = []string{challenge(m)} }
	}
	return []flaw{
		{"no-challenge", "no-challenge", "A plain request where the policy asks for a fresh one: a captured one would do.", func(m *making) { m.policy = []string{"require_challenge = true"} }},
		{"empty-password", "no-challenge", "An empty challengePassword where the policy asks for a fresh request.", func(m *making) {
			m.csr.Passwords, m.policy = []string{""}, []string{"require_challenge = true"}
		}},
		{"two-challenges", "several-challenges", "One challenge in the request, another beside it.", func(m *making) {
			m.csr.Passwords = []string{m.challenge()}
			text := m.challenge()
			m.answered(text, m.board.Answer(m.t, text, crypto.SHA256))
		}},
		{"many-challenges", "several-challenges", "Ten challenges, collected beforehand.", func(m *making) {
			for range 10 {
				m.csr.Subject = append(m.csr.Subject, m.unit(m.challenge()))
			}
			m.inBody()
		}},
		{"challenge-of-another-issuer", "bad-challenge", "A challenge that another key made.", password(func(m *making) string { return m.foreignChallenge(issuertest.SKU, 'x') })},
		{"challenge-of-another-sku", "bad-challenge", "A challenge that the issuer of another product made with the same key.", password(func(m *making) string { return m.foreignChallenge("gadget", 'k') })},
		{"password", "bad-challenge", "A challengePassword that is no challenge.", password(func(*making) string { return "hunter2" })},
		{"challenge-from-the-future", "bad-challenge", "A challenge that is made the day after tomorrow.", password(func(m *making) string {
			text, _ := issuertest.Challenges(m.t).New(time.Now().Add(48 * time.Hour))
			return text
		})},
		{"challenge-extended", "bad-challenge", "An expired challenge that was given another end.", password(func(m *making) string {
			old, _ := issuertest.Challenges(m.t).New(time.Now().Add(-time.Hour))
			return m.challenge()[:len(issuer.ChallengePrefix)+6] + old[len(issuer.ChallengePrefix)+6:]
		})},
		{"challenge-in-lower-case", "bad-challenge", "A second way to write a challenge.", password(func(m *making) string { return strings.ToLower(m.challenge()) })},
		{"replayed-after-its-end", "challenge-expired", "A captured request, replayed after its challenge has ended.", password(func(m *making) string {
			text, _ := issuertest.Challenges(m.t).New(time.Now().Add(-issuer.DefaultChallengeLife))
			return text
		})},
		{"answer-of-another-key", "challenge-signature", "Another board signed the challenge beside a captured request.", func(m *making) {
			text := m.challenge()
			m.answered(text, issuertest.NewBoard(m.t).Answer(m.t, text, crypto.SHA256))
		}},
		{"answer-to-another-challenge", "challenge-signature", "A captured answer, with a challenge of today.", func(m *making) {
			m.answered(m.challenge(), m.board.Answer(m.t, m.challenge(), crypto.SHA256))
		}},
		{"answer-of-zeros", "challenge-signature", "r and s of the answer are zero.", func(m *making) { m.answered(m.challenge(), "MAYCAQACAQA=") }},
		{"answer-with-sha1", "challenge-signature", "An answer with SHA-1, which the policy does not allow.", func(m *making) {
			text := m.challenge()
			m.csr.SHA256, m.policy = true, []string{"refuse_sha1 = true"}
			m.answered(text, m.board.Answer(m.t, text, crypto.SHA1))
		}},
	}
}

func flawsAtOtherDoors() []flaw {
	spliced := func(m *making) { m.csr.Key, m.csr.Public = issuertest.NewBoard(m.t).Key, m.board.Key.Public() }
	lines := func(m *making) {
		der, _ := m.bytes()
		m.head, m.body = []string{bodyType, "content-transfer-encoding: base64"}, []byte(base64.StdEncoding.EncodeToString(der)+"\n")
	}
	return []flaw{
		{"spliced-key-at-proto", "csr-signature", "The public key of an enrolled board under the signature of another, at the second door.", func(m *making) {
			m.path = "/proto"
			spliced(m)
		}},
		{"spliced-key-over-est", "csr-signature", "The public key of an enrolled board under the signature of another, over EST.", func(m *making) {
			m.path = "/.well-known/est/simpleenroll"
			spliced(m)
			lines(m)
		}},
		{"another-key-over-est", "key-mismatch", "The name of an enrolled board with a key of one's own, over EST and under the name of the product.", func(m *making) {
			m.path = "/.well-known/est/widgiot/simpleenroll"
			m.csr.Key = issuertest.NewBoard(m.t).Key
			lines(m)
		}},
		{"re-enrol-without-certificate", "no-peer", "A good request to renew, by a sender that showed no certificate.", func(m *making) {
			m.path = "/.well-known/est/simplereenroll"
			lines(m)
		}},
	}
}
