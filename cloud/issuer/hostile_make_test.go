package issuer_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha1"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"secretfree/cloud"
	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/server"
	"secretfree/station/board"
)

var update = flag.Bool("update", false, "write the hostile corpus anew")

// corpusClock is that of every file.
var corpusClock = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// making is a file of the corpus before it is written: a scene, and how it is
// sent.
type making struct {
	*scene
	path   string
	head   []string                  // headers; nil: the request in device-csr
	extra  []string                  // further headers
	body   []byte                    // sent instead of a header
	policy []string                  // lines of TOML under [policy]
	der    func(der []byte) []byte   // changes the request
	pem    func(text []byte) []byte  // changes its PEM
	change func(item map[string]any) // changes the item
	items  []board.Record            // further ones
	rawItm func(data []byte) []byte  // changes the item's bytes
}

// bytes are the DER and the PEM of the request as it is sent.
func (m *making) bytes() (der, text []byte) {
	der = m.csr.DER(m.t)
	if m.der != nil {
		der = m.der(der)
	}
	text = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	if m.pem != nil {
		text = m.pem(text)
	}
	return der, text
}

func (m *making) inHeader() string {
	_, text := m.bytes()
	return server.HeaderCSR + ": " + base64.StdEncoding.EncodeToString(text)
}

const bodyType = "content-type: application/pkcs10"

// inBody sends DER.
func (m *making) inBody() {
	der, _ := m.bytes()
	m.head, m.body = []string{bodyType}, der
}

func (m *making) inBodyPEM() {
	_, text := m.bytes()
	m.head, m.body = []string{bodyType}, text
}

func (m *making) rsa(bits int) { m.board.Key = m.rsaKey(bits); m.csr.Key = m.board.Key }

func (m *making) curve(c elliptic.Curve) {
	m.board.Key = m.ecKey(c)
	m.csr.Key, m.record = m.board.Key, m.board.Record(m.t, m.station)
}

// answered puts an answer to a challenge beside the request.
func (m *making) answered(challenge, signature string) {
	m.extra = append(m.extra, server.HeaderChallenge+": "+challenge, server.HeaderSignature+": "+signature)
}

func (m *making) unit(value string) []issuertest.NameAttribute {
	return issuertest.Name(oid(2, 5, 4, 11), asn1.TagPrintableString, value)
}

// swap changes one piece of the DER into another of the same length.
func (m *making) swap(old, new []byte) {
	m.der = func(der []byte) []byte {
		if bytes.Count(der, old) == 0 || len(old) != len(new) {
			m.t.Fatalf("there is no %x to swap", old)
		}
		return bytes.Replace(der, old, new, 1)
	}
}

// content is a CertificationRequestInfo. Each part can be anything.
type content struct{ Version, Subject, Key, Attributes asn1.RawValue }

// content changes what is signed, and signs it.
func (m *making) content(change func(c *content)) {
	m.der = func(der []byte) []byte {
		var outer struct {
			Info, Algorithm asn1.RawValue
			Signature       asn1.BitString
		}
		if _, err := asn1.Unmarshal(der, &outer); err != nil {
			m.t.Fatal(err)
		}
		var info content
		if _, err := asn1.Unmarshal(outer.Info.FullBytes, &info); err != nil {
			m.t.Fatal(err)
		}
		change(&info)
		parts := slices.Concat(info.Version.FullBytes, info.Subject.FullBytes, info.Key.FullBytes, info.Attributes.FullBytes)
		signed := issuertest.MustASN1(m.t, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: parts}, "")
		outer.Info = asn1.RawValue{FullBytes: signed}
		digest := sha1.Sum(signed)
		signature, err := m.csr.Key.Sign(nil, digest[:], crypto.SHA1)
		if err != nil {
			m.t.Fatal(err)
		}
		outer.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
		return issuertest.MustASN1(m.t, outer, "")
	}
}

// spki signs a request whose key is given as it is encoded.
func (m *making) spki(spki []byte) {
	m.content(func(c *content) { c.Key = asn1.RawValue{FullBytes: spki} })
}

// onCurve is the SubjectPublicKeyInfo of a point of a curve, both as they are
// encoded.
func (m *making) onCurve(curve asn1.ObjectIdentifier, point []byte) []byte {
	return issuertest.MustASN1(m.t, struct {
		Algorithm struct{ ID, Curve asn1.ObjectIdentifier }
		Point     asn1.BitString
	}{struct{ ID, Curve asn1.ObjectIdentifier }{oid(1, 2, 840, 10045, 2, 1), curve}, asn1.BitString{Bytes: point, BitLength: 8 * len(point)}}, "")
}

func (m *making) point(compress bool) []byte {
	public := m.csr.Key.Public().(*ecdsa.PublicKey)
	raw, err := public.Bytes()
	if err != nil {
		m.t.Fatal(err)
	}
	if !compress {
		return raw
	}
	return append([]byte{2 + raw[64]&1}, raw[1:33]...)
}

// foreignChallenge is one that another issuer made.
func (m *making) foreignChallenge(sku string, key byte) string {
	c, err := issuer.NewChallenges(sku, bytes.Repeat([]byte{key}, 32), time.Minute)
	if err != nil {
		m.t.Fatal(err)
	}
	text, _ := c.New(time.Now())
	return text
}

// setSignature replaces the request's signature.
func (m *making) setSignature(signature []byte) {
	m.der = func(der []byte) []byte {
		var outer struct {
			Info, Algorithm asn1.RawValue
			Signature       asn1.BitString
		}
		if _, err := asn1.Unmarshal(der, &outer); err != nil {
			m.t.Fatal(err)
		}
		outer.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
		return issuertest.MustASN1(m.t, outer, "")
	}
}

// envelope puts the record of another seal into the item.
func (m *making) envelope(e board.Enrolment) {
	m.change = func(item map[string]any) { item["record"] = string(e.Envelope) }
}

// pubkey is how an item has a key.
func pubkey(k board.Key) string { return base64.StdEncoding.EncodeToString(k.PEM()) }

func san(value ...byte) []issuertest.Extension {
	return []issuertest.Extension{{ID: oid(2, 5, 29, 17), Value: value}}
}

// wideOID is an object identifier with an arc over 31 bits, and wideExtension
// an extension of that name in a list.
var (
	wideOID       = []byte{6, 7, 0x2b, 0x06, 0xa5, 0xa0, 0xaf, 0xc7, 0x00}
	wideExtension = []byte{0x30, 0x0f, 0x30, 0x0d, 6, 7, 0x2b, 0x06, 0xa5, 0xa0, 0xaf, 0xc7, 0x00, 4, 2, 5, 0}
)

// extensionRequest is the attribute with values as they are.
func (m *making) extensionRequest(values ...[]byte) []byte {
	set := asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: slices.Concat(values...)}
	return issuertest.MustASN1(m.t, struct {
		ID     asn1.ObjectIdentifier
		Values asn1.RawValue
	}{oid(1, 2, 840, 113549, 1, 9, 14), set}, "")
}

func repeat[T any](n int, make func(i int) T) []T {
	var out []T
	for i := range n {
		out = append(out, make(i))
	}
	return out
}

// TestMakeHostileCorpus writes the corpus with -update, the same each time.
// Without, it only sees to it that every flaw has its file; a file without a
// flaw was written by hand.
func TestMakeHostileCorpus(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(hostileFolder, "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, name := range names {
		have[filepath.Base(name)] = true
	}
	for _, f := range flaws() {
		file := f.name + "." + f.want + ".txt"
		if !*update {
			if !have[file] {
				t.Errorf("there is no file %s: go test -run MakeHostileCorpus -update writes it", file)
			}
			continue
		}
		t.Run(file, func(t *testing.T) {
			seed := fnv.New64a()
			_, _ = seed.Write([]byte(f.name))
			cryptotest.SetGlobalRandom(t, seed.Sum64())
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(corpusClock))
				m := &making{scene: newScene(t), path: "/new"}
				f.spoil(m)
				if err := os.WriteFile(filepath.Join(hostileFolder, file), m.file(f), 0o644); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func (m *making) file(f flaw) []byte {
	outcome, status := server.Outcome(f.want), 503
	switch {
	case f.want == "approved":
		status = 200
	case f.want != string(server.TryLater):
		if outcome, status = server.Refused, 403; issuer.Refusal(f.want).Malformed() {
			outcome, status = server.Malformed, 400
		}
	}
	answer := fmt.Sprintf(`{"error":%q,"id":"*"}`, outcome)
	if status == 200 {
		answer = "a certificate"
	}
	out := &txtar.Archive{Comment: fmt.Appendf(nil, "# %s\nclock: %s\nstatus: %d\nanswer: %s\n", f.about, corpusClock.Format(time.RFC3339), status, answer)}
	add := func(name string, data []byte) { out.Files = append(out.Files, txtar.File{Name: name, Data: data}) }

	head := m.head
	if head == nil {
		head = []string{m.inHeader()}
	}
	add("request", []byte("POST "+m.path+"\n"+strings.Join(append(slices.Clone(head), m.extra...), "\n")))
	if len(head)+len(m.extra) > 0 {
		out.Files[0].Data = append(out.Files[0].Data, '\n')
	}
	switch {
	case m.body == nil:
	case m.body[len(m.body)-1] == '\n' && !bytes.ContainsFunc(m.body, func(r rune) bool { return r > '~' || r < ' ' && r != '\n' }):
		add("body", m.body)
	default:
		var lines []byte
		for row := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(m.body)), 76) {
			lines = append(append(lines, row...), '\n')
		}
		add("body.base64", lines)
	}
	if len(m.policy) > 0 {
		text := strings.Join(m.policy, "\n") + "\n"
		if !strings.HasPrefix(text, "[[") {
			text = "[policy]\n" + text
		}
		add("policy.toml", []byte(text))
	}
	add("stations", []byte(m.station.Public+"\n"))
	if !m.absent {
		data := m.item(m.seal(m.record))
		if m.change != nil {
			data = changeItem(m.t, data, m.change)
		}
		if m.rawItm != nil {
			data = m.rawItm(data)
		}
		add("items/"+m.board.ID.String()+".json", data)
	}
	for _, r := range m.items {
		add("items/"+r.Device.String()+".json", m.item(issuertest.Enrolment(m.t, r, m.station)))
	}
	return txtar.Format(out)
}

// item is what a registry writes of an enrolment.
func (m *making) item(e board.Enrolment) []byte {
	dir := filepath.Join(m.t.TempDir(), "registry")
	if err := cloud.InitDir(dir); err != nil {
		m.t.Fatal(err)
	}
	registry, err := cloud.OpenDir(cloud.DirConfig{Path: dir})
	if err != nil {
		m.t.Fatal(err)
	}
	sealed, err := board.ParseEnvelope(e.Envelope)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := registry.Put(m.t.Context(), sealed); err != nil {
		m.t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "items", e.Device.String()+".json"))
	if err != nil {
		m.t.Fatal(err)
	}
	return data
}

func changeItem(t testing.TB, data []byte, change func(map[string]any)) []byte {
	var item map[string]any
	if err := json.Unmarshal(data, &item); err != nil {
		t.Fatal(err)
	}
	change(item)
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(item); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
