package uart

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"secretfree/station/board"
)

// The parser of each line of a board by itself; FuzzTIAT and its like have
// whole dialogues. What parses is all of the text, and encodes to it again.

func FuzzUDIDLine(f *testing.F) {
	f.Add("0x4d,0x1f,0x8e,0x27,0xb3,0xc0,0x5a,0x9e,0x61,0xf2,0xd4,0x77,0x88,0xaa,0xbb,0xcc")
	f.Add(" 0X4D, 0x1F,0x8E,0x27 ,0xb3,0xc0,0x5a,0x9e,0x61,0xf2,0xd4,0x77,0x88,0xaa,0xbb,0xcc\t")
	f.Add("0x0,0xa,0x0d,0xff,0x0,0x0,0x0,0x0,0x0,0x0,0x0,0x0,0x0,0x0,0x0,0x1")
	f.Add("0x0,0xa,0xd,0xff,0x0,0x0,0x0,0x0,0x0,0x0,0x0,0x0,0x0,0x0,0x")
	f.Fuzz(func(t *testing.T, value string) {
		udid, ok := parseUDID(value)
		if !ok {
			return
		}
		fields := strings.Split(fold(value), ",")
		if len(fields) != len(udid) {
			t.Fatalf("%q has %d fields", value, len(fields))
		}
		for i, b := range udid {
			if fields[i] != fmt.Sprintf("0x%x", b) && fields[i] != fmt.Sprintf("0x%02x", b) {
				t.Errorf("field %d of %q became %02x", i, value, b)
			}
		}
		// A field less is none, wherever it was lost.
		for i := range value {
			if _, ok := parseUDID(value[:i]); ok && strings.Count(value[:i], ",") != 15 {
				t.Errorf("%q passes as well as %q", value[:i], value)
			}
		}
		// A blank inside a number is no number.
		if i := strings.LastIndexAny(value, "xX"); i >= 0 {
			if _, ok := parseUDID(value[:i] + " " + value[i:]); ok {
				t.Errorf("%q passes with a blank inside a number", value)
			}
		}
	})
}

// Facts never fail a board, and always make a record.
func FuzzFactLines(f *testing.F) {
	for _, value := range []string{
		"0x31000019,3.1.0.5,3.1.0.19,4.4.1.3,8738", "0X3100001A, 3.1.0.5, 3.1.0.19, 4.4.1.3, 0X2222,1.2", "0x31000019,3.1.0.5,3.1.0.19,4.4.1.3", "hello",
		"0x8:0x0:0x28:0x5b:0x55:0xe0", "08-00-28-5B-55-E0", "0800285B55E0", "1,88," + strings.Repeat("A", 87) + "=", "0,65,\x04\x00,\x81", strings.Repeat("x", 2000),
	} {
		f.Add(value)
	}
	key, err := board.ParseKey(testSPKI(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, value string) {
		facts := map[string]string{}
		parseVersion(value, facts)
		parseMAC(value, facts)
		parseKey1(value, facts)
		r := board.Record{SKU: "s", Station: "s", Device: board.DeviceID{1}, Key: key, ReadAt: time.Unix(0, 0).UTC(), Generation: 1, Facts: facts}
		if err := r.Check(); err != nil {
			t.Errorf("%q: %v", value, err)
		}
		if mac := facts["mac"]; mac != "" && !regexp.MustCompile(`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`).MatchString(mac) {
			t.Errorf("%q became the address %q", value, mac)
		}
	})
}

func testSPKI(f *testing.F) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	return spki
}

func FuzzSignMsgLine(f *testing.F) {
	for _, n := range []int{64, 70, 72} {
		text := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0x30}, n))
		f.Add(fmt.Sprintf("1,%d,%s", len(text), text))
		f.Add(fmt.Sprintf(" 1, %d, %s ", len(text), text))
		f.Add(fmt.Sprintf("1,%d,%s", n, text)) // the length of what it stands for
	}
	f.Add("1,4,AAA=")
	f.Add("1,004,AAA=")
	f.Add("1,4,AAB=") // not the one encoding of two bytes
	f.Fuzz(func(t *testing.T, value string) {
		raw, err := parseBase64(value)
		if err != nil {
			return
		}
		text := base64.StdEncoding.EncodeToString(raw)
		length, rest, _ := strings.Cut(strings.TrimPrefix(tiBlanks.Replace(value), "1,"), ",")
		if n, err := strconv.Atoi(length); err != nil || n != len(text) || rest != text {
			t.Errorf("%q became %q", value, text)
		}
	})
}

// Whatever is taken for a signature: each key that is recovered from it is one
// under which it holds.
func FuzzSignature(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	message := []byte("a nonce")
	digest := sha256.Sum256(message)
	der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		f.Fatal(err)
	}
	r, s, _, err := parseSignature(der)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der, message)
	f.Add(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), message)
	f.Add(append([]byte{0x30, 0x81}, der[1:]...), message) // a length in a form that DER does not have
	f.Add(append(der, 0), message)
	f.Add(make([]byte, 64), message)
	f.Add(bytes.Repeat([]byte{0xff}, 64), []byte{})
	f.Fuzz(func(t *testing.T, b, message []byte) {
		r, s, encoding, err := parseSignature(b)
		if err != nil {
			return
		}
		var again []byte
		switch encoding {
		case "raw":
			again = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		case "der":
			if again, err = asn1.Marshal(struct{ R, S *big.Int }{r, s}); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x is %s, and encodes to %x", b, encoding, again)
		}
		digest := sha256.Sum256(message)
		for point := range candidateKeys(digest[:], r, s) {
			key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), []byte(point))
			if err != nil || !ecdsa.Verify(key, digest[:], r, s) {
				t.Errorf("%x gives the key %x, under which it does not hold (%v)", b, point, err)
			}
		}
	})
}

// The request is what is between the markers, whatever line ends are in it.
func FuzzCSRPEM(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		f.Fatal(err)
	}
	good := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	f.Add(good)
	f.Add(strings.ReplaceAll(good, "\n", "\r\n\r"))
	f.Add(strings.ReplaceAll(good, "CERTIFICATE", "NEW CERTIFICATE"))
	f.Add(strings.Replace(good, "END CERTIFICATE", "END NEW CERTIFICATE", 1))
	f.Add("x" + good + good)
	f.Add("-----BEGIN REQUEST-----AAAA-----END REQUEST-----")
	f.Fuzz(func(t *testing.T, text string) {
		request := findPEM(text)
		if request == nil {
			return
		}
		der, err := request.der()
		if err != nil {
			return
		}
		// It is what the library makes of the same without its odd characters,
		// and it reads back.
		block, _ := pem.Decode(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		if len(der) > 0 && (block == nil || !bytes.Equal(block.Bytes, der)) {
			t.Fatalf("the library does not read %x back", der)
		}
		kept := strings.Map(func(r rune) rune {
			if strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=", r) {
				return r
			}
			return -1
		}, request.base64)
		if again := base64.StdEncoding.EncodeToString(der); again != kept {
			t.Errorf("%q encodes to %q", kept, again)
		}
	})
}

func FuzzReportAnswer(f *testing.F) {
	const nonce = "Zx81kPq0aaBcDeFgHiJkL"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	device := bytes.Repeat([]byte{0x4d, 0x0a}, 8)
	digest := sha256.Sum256(fmt.Appendf(nil, "secretfree 1 %s %x", nonce, device))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		f.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		f.Fatal(err)
	}
	sealed := func(text string) string { return fmt.Sprintf("%s %08x", text, crc32.ChecksumIEEE([]byte(text))) }
	for _, text := range []string{
		fmt.Sprintf("secretfree 1 %x %x %x", device, point, signature),
		fmt.Sprintf("secretfree 1 %X %x %x", device, point[1:], signature),
		fmt.Sprintf("secretfree 1 ready %x", device), "secretfree 1 error", "secretfree 2 error", "secretfree 1 ",
		fmt.Sprintf("Secretfree  1\tREADY %X", device),
	} {
		f.Add(sealed(text))
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, line string) {
		text, err := openAnswer(line)
		if err != nil {
			return
		}
		if got, want := strings.Fields(strings.ToLower(line)), strings.Fields(strings.ToLower("secretfree 1 "+text)); !slices.Equal(got[:len(got)-1], want) {
			t.Fatalf("%q is the answer %q, which is another line", line, text)
		}
		report, err := parseReport(text, nonce)
		if err != nil {
			return
		}
		fields := strings.Fields(text)
		if len(fields) != 3 || !strings.EqualFold(fields[0], hex.EncodeToString(report.Device[:])) {
			t.Fatalf("%q is a report of the device %x", text, report.Device)
		}
		public, err := x509.ParsePKIXPublicKey(report.SPKI)
		key, ok := public.(*ecdsa.PublicKey)
		if err != nil || !ok {
			t.Fatalf("%q is a report of the key %x", text, report.SPKI)
		}
		message := fmt.Appendf(nil, "secretfree 1 %s %x", nonce, report.Device)
		for _, hash := range hashes {
			if hash.name == report.Proof.Hash && !ecdsa.VerifyASN1(key, hash.sum(message), report.Proof.Signatures[0]) {
				t.Errorf("%q is a report whose signature does not hold", text)
			}
		}
	})
}

// A question of the CSR example in any words: what is typed before it and the
// events in it change nothing, and no part of it is lost.
func FuzzCSRPrompt(f *testing.F) {
	for _, text := range []string{
		"-Enter validity period (days):", "\r\n\n-Is certificate CA? (0-No/1-Yes):", "Organizational Unit Name (eg, section) []: ", "Common Name (e.g. server FQDN or YOUR name) []: x",
		"Unique device ID = 00 01 02\r\n\r\nPress a key to go on >", "-Enter sub[NETAPP EVENT] IP Acquired: IP=192.0.2.7\r\nject state:", "  Default subject country: US  \r\n\r\n-Enter", ":", "((:)",
		"[WLAN EVENT] x", "Paste the certificate:\r\n", "gateway login: ", "\x00\xff:", "Paste tifica:\r:", "Certificate:\r:e",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		known := []string{""}
		for _, s := range csrSubjects {
			known = append(known, s.subject)
		}
		for _, stale := range []bool{false, true} {
			subject, rest, c := csrPrompt(text, stale)
			switch {
			case !slices.Contains(known, subject):
				t.Fatalf("%q has the subject %q", text, subject)
			case c == noQuestion && (subject != "" || rest != ""):
				t.Errorf("%q is no question, and has the subject %q and the rest %q", text, subject, rest)
			case !strings.HasSuffix(text, rest) || strings.ContainsAny(rest, "\r\n"):
				t.Errorf("%q has the rest %q", text, rest)
			case c == surely && subject == "":
				t.Errorf("%q is surely a question, and has no subject", text)
			}
			// The line alone is the question, whatever came before; but for one
			// without words, whose words are on the line before.
			if line := text[strings.LastIndexAny(text, "\r\n")+1:]; c >= probably && strings.Trim(strings.TrimSuffix(line, rest), csrSigns) != "" {
				if s, r, d := csrPrompt(line, stale); s != subject || r != rest || d != c {
					t.Errorf("%q: %q, %q, %d; and after other lines %q, %q, %d", line, s, r, d, subject, rest, c)
				}
			}
		}
		if subject := csrSubject(text); subject != csrSubject(strings.ToUpper(text)) && strings.EqualFold(strings.ToUpper(text), text) {
			t.Errorf("%q has the subject %q, and in capitals %q", text, subject, csrSubject(strings.ToUpper(text)))
		}
		clean, origin := withoutEvents(text)
		for i := range len(clean) {
			if at := origin(i); at < i || at >= len(text) || text[at] != clean[i] {
				t.Fatalf("%q without events: byte %d is at %d", text, i, at)
			}
		}
	})
}
