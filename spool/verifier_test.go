package spool

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// verifier runs the verifier in Python, which was written from FORMAT.md alone.
// It returns what it says of each file or folder, or what is wrong with it.
func verifier(t *testing.T, public string, names ...string) (good map[string]map[string]any, wrong string) {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		const message = "there is no python3 to run fixtures/verifier/verify.py with"
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	var out, says bytes.Buffer
	c := exec.CommandContext(t.Context(), python, append([]string{"../fixtures/verifier/verify.py", public}, names...)...)
	c.Stdout, c.Stderr = &out, &says
	err = c.Run()
	if (err != nil) != (says.Len() > 0) || strings.Contains(says.String(), "Traceback") {
		t.Errorf("the verifier: %v\n%s", err, says.String())
	}
	good = map[string]map[string]any{}
	for line := range bytes.Lines(out.Bytes()) {
		var one map[string]any
		if err := json.Unmarshal(line, &one); err != nil {
			t.Fatal(err)
		}
		good[one["name"].(string)] = one
	}
	return good, says.String()
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// A program in another language verifies what lies in testdata, and a journal
// with every kind of proof.
func TestVerifierInPython(t *testing.T) {
	known := knownIdentity(t, "widgiot/line3-a")
	public := writeFile(t, filepath.Join(t.TempDir(), "station.pub"), []byte(known.Key+"\n"))
	const folder, proven, bundle = "testdata/format2", "testdata/evidence2/board.tlog-proof", "testdata/evidence2/stick/widgiot/line3-a/00000000000000000000-00000000000000000019.bundle"
	good, wrong := verifier(t, public, folder, proven, bundle)
	report := good[folder]
	if wrong != "" || report["passed"] != 12.0 || report["repeated"] != 1.0 || report["failed"] != 2.0 || report["rejection"] != 1.0 || report["signed"] != report["entries"] ||
		good[proven]["entry"] != 14.0 || good[bundle]["next"] != 20.0 {
		t.Errorf("testdata: %v, %s", good, wrong)
	}

	k := newKit(t)
	pub := filepath.Join(k.dir, "station.pub")
	var last board.Record
	for _, method := range []board.ProofMethod{board.ProofSignMsg, board.ProofReport, board.ProofCSR} {
		for _, hash := range []board.Hash{board.SHA1, board.SHA256} {
			last = recordWithProof(t, method, hash)
			if err := last.Proof.Verify(last.Device, last.Key); err != nil {
				t.Fatal(err)
			}
			if _, err := k.append(last); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	proof, err := journal.Prove(k.dir, last.Device)
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, filepath.Join(t.TempDir(), "last.tlog-proof"), proof)
	good, wrong = verifier(t, pub, k.dir, file)
	if wrong != "" || good[k.dir]["passed"] != 6.0 || good[k.dir]["signed"] != 7.0 || good[file]["device"] != last.Device.String() {
		t.Errorf("every kind of proof: %v, %s", good, wrong)
	}

	// What is wrong is found, in whatever file it is.
	segment, err := os.ReadFile(journal.SegmentPath(k.dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err := os.ReadFile(journal.CheckpointPath(k.dir))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(segment, []byte("\n"))
	other, err := journal.LoadIdentity(t.TempDir(), "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	forged, err := journal.Checkpoint{Size: 7}.Encode(known.Signer)
	if err != nil {
		t.Fatal(err)
	}
	wrongRoot, err := journal.Checkpoint{Size: 7}.Encode(k.id.Signer)
	if err != nil {
		t.Fatal(err)
	}
	badProof := recordWithProof(t, board.ProofReport, board.SHA256)
	badProof.Device[3] ^= 1
	bad := filepath.Join(t.TempDir(), "bad")
	writeJournal(t, bad, k.id, []board.Record{badProof}, nil)
	twoKeys := []board.Record{recordWithProof(t, board.ProofSignMsg, board.SHA256), recordWithProof(t, board.ProofSignMsg, board.SHA256)}
	twoKeys[1].Device = twoKeys[0].Device
	twice := filepath.Join(t.TempDir(), "twice")
	writeJournal(t, twice, k.id, twoKeys, nil)
	var dirs []string
	says := map[string]string{}
	for name, c := range map[string]struct {
		segment, checkpoint []byte
		dir, says           string
	}{
		"a flipped bit":            {segment: flip(segment, len(segment)/2), says: "damaged"},
		"an entry less":            {segment: bytes.Join(append(lines[:3:3], lines[4:]...), nil), says: "stands where"},
		"the end cut off":          {segment: bytes.Join(lines[:4], nil), says: "there are 4"},
		"a forged checkpoint":      {checkpoint: forged, says: "not signed by"},
		"another root":             {checkpoint: wrongRoot, says: "another root"},
		"a device with two keys":   {dir: twice, says: "has two keys"},
		"another's board's report": {dir: bad, says: "a signature of the board does not hold"},
	} {
		dir := c.dir
		if dir == "" {
			dir = filepath.Join(t.TempDir(), name)
			if err := os.MkdirAll(journal.Dir(dir), 0o700); err != nil {
				t.Fatal(err)
			}
			writeFile(t, journal.SegmentPath(dir, 0), or(c.segment, segment))
			writeFile(t, journal.CheckpointPath(dir), or(c.checkpoint, checkpoint))
		}
		dirs, says[dir] = append(dirs, dir), c.says
	}
	good, wrong = verifier(t, pub, dirs...)
	for dir, want := range says {
		_, line, _ := strings.Cut(wrong, dir+": ")
		if line, _, _ = strings.Cut(line, "\n"); good[dir] != nil || !strings.Contains(line, want) {
			t.Errorf("%s: %v, %q, want %q", dir, good[dir], line, want)
		}
	}
	if good, _ := verifier(t, writeFile(t, filepath.Join(t.TempDir(), "other.pub"), []byte(other.Key)), file); len(good) > 0 {
		t.Errorf("a proof, under another key: %v", good)
	}
}

func flip(data []byte, at int) []byte {
	out := bytes.Clone(data)
	out[at] ^= 0x10
	return out
}

func or(data, other []byte) []byte {
	if data == nil {
		return other
	}
	return data
}

// recordWithProof is a board that has proved by a method that it owns its key.
func recordWithProof(t *testing.T, method board.ProofMethod, hash board.Hash) board.Record {
	t.Helper()
	private := newP256(t)
	r := provenRecord(t, private)
	nonce := []byte(rand.Text())
	sign := func(message []byte) []byte {
		digest, by := sha256.Sum256(message), crypto.SHA256
		sum := digest[:]
		if hash == board.SHA1 {
			short := sha1.Sum(message)
			sum, by = short[:], crypto.SHA1
		}
		signature, err := private.Sign(rand.Reader, sum, by)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	p := &board.Proof{Method: method, Hash: hash}
	switch method {
	case board.ProofSignMsg:
		for range 2 {
			nonce := []byte(rand.Text())
			p.Nonces, p.Signatures = append(p.Nonces, nonce), append(p.Signatures, sign(nonce))
		}
	case board.ProofReport:
		p.Nonces, p.Signatures = [][]byte{nonce}, [][]byte{sign(board.ReportMessage(r.Device, nonce))}
	case board.ProofCSR:
		template := &x509.CertificateRequest{Subject: pkix.Name{OrganizationalUnit: []string{string(nonce)}, CommonName: r.Device.String()}}
		request := signRequest(t, private, template, hash)
		parsed, err := x509.ParseCertificateRequest(request)
		if err != nil {
			t.Fatal(err)
		}
		p.Nonces, p.Signatures, p.Request = [][]byte{nonce}, [][]byte{parsed.Signature}, request
	}
	r.Proof = p
	return r
}

// signRequest makes a request; SHA-1, which stock firmware uses, by hand.
func signRequest(t *testing.T, private *ecdsa.PrivateKey, template *x509.CertificateRequest, hash board.Hash) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, private)
	if err != nil || hash == board.SHA256 {
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	parsed, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(parsed.RawTBSCertificateRequest)
	signature, err := ecdsa.SignASN1(rand.Reader, private, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	algorithm := []byte{0x30, 9, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1} // ecdsa-with-SHA1
	bits := append([]byte{3, byte(len(signature) + 1), 0}, signature...)
	body := append(append(bytes.Clone(parsed.RawTBSCertificateRequest), algorithm...), bits...)
	return append([]byte{0x30, 0x82, byte(len(body) >> 8), byte(len(body))}, body...)
}
