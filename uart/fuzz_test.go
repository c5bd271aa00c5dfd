package uart_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/station/board"
	"secretfree/uart"
)

// Whatever a board prints, in whatever order: the reading ends, a report has a
// proof that holds for the nonces of this reading, and of a private key nothing
// is kept. The input is what the board says after each thing that it is sent,
// with bytes ff between; the nonces, with commas between; and where in it a
// private key is printed, if anywhere.
func FuzzTIAT(f *testing.F)       { fuzzDialect(f, "ti-at") }
func FuzzTICSR(f *testing.F)      { fuzzDialect(f, "ti-csr") }
func FuzzReportLine(f *testing.F) { fuzzDialect(f, "report") }
func FuzzAuto(f *testing.F)       { fuzzDialect(f, "auto") }

func fuzzDialect(f *testing.F, name string) {
	paths, err := filepath.Glob(filepath.Join(transcripts, name+"*.uart"))
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for i, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		transcript, err := uart.ParseTranscript(text)
		if err != nil {
			f.Fatal(err)
		}
		var said bytes.Buffer
		var nonces []string
		for _, chunk := range transcript.Chunks {
			switch chunk.Direction {
			case uart.Sent:
				said.WriteByte(0xff)
			case uart.Received:
				said.Write(chunk.Bytes)
			case uart.Drawn:
				nonces = append(nonces, string(chunk.Bytes))
			}
		}
		f.Add(said.Bytes(), strings.Join(nonces, ","), -1)
		f.Add(said.Bytes(), strings.Join(nonces, ","), i*37%(said.Len()+1))
	}
	key, secret := fuzzKey(f)
	f.Fuzz(func(t *testing.T, said []byte, nonces string, leak int) {
		if len(said) > 16<<10 {
			return
		}
		if leak >= 0 && leak <= len(said) {
			said = bytes.Join([][]byte{said[:leak], said[leak:]}, key)
		}
		synctest.Test(t, func(t *testing.T) { fuzzOne(t, mustDialect(t, name), said, strings.Split(nonces, ","), secret) })
	})
}

// fuzzKey is a private key as PEM, and the base64 that must not be kept.
func fuzzKey(f *testing.F) (key []byte, secret string) {
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{0x5e, 0xc2, 0x37}, 11)[:32])
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		f.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), base64.StdEncoding.EncodeToString(der)[12:52]
}

func fuzzOne(t *testing.T, d uart.Dialect, said []byte, nonces []string, secret string) {
	ours, theirs := net.Pipe()
	asked := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(asked)
		for buf := make([]byte, 256); ; {
			if _, err := theirs.Read(buf); err != nil {
				return
			}
			select {
			case asked <- struct{}{}:
			default:
			}
		}
	})
	wg.Go(func() {
		for _, text := range bytes.Split(said, []byte{0xff}) {
			if len(text) > 0 {
				time.Sleep(3 * time.Millisecond)
				if _, err := theirs.Write(text); err != nil {
					return
				}
			}
			if _, ok := <-asked; !ok {
				return
			}
		}
	})
	drawn := 0
	l := uart.NewLine(ours, uart.LineOptions{Nonce: func(int) string {
		if drawn++; drawn <= len(nonces) {
			return nonces[drawn-1]
		}
		return "nonce0123456789abcdef"
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var report uart.Report
	err := d.Detect(ctx, l)
	if err == nil {
		limited, stop := context.WithTimeout(ctx, 3*time.Minute)
		report, err = d.Read(limited, l)
		if limited.Err() != nil {
			t.Error("the reading does not end")
		}
		stop()
	}
	text, encodeErr := l.Transcript().Encode()
	if encodeErr != nil {
		t.Errorf("the recording does not encode: %v", encodeErr)
	}
	if err == nil {
		fuzzProof(t, report, nonces)
	} else {
		text = append(text, err.Error()...)
	}
	for i := range len(secret) - 8 {
		if bytes.Contains(text, []byte(secret[i:i+8])) {
			t.Fatalf("private key material was kept:\n%s", text)
		}
	}
	ours.Close()
	theirs.Close()
	wg.Wait()
}

// fuzzProof checks a report as the station does. A board cannot make one but
// with its key over a nonce of this reading; the seeds hold such boards.
func fuzzProof(t *testing.T, report uart.Report, nonces []string) {
	key, err := board.ParseKey(report.SPKI)
	if err != nil {
		t.Fatalf("a report with a key that is none: %v", err)
	}
	if report.Proof == nil {
		t.Fatal("a report without a proof")
	}
	p := board.Proof{
		Method: board.ProofMethod(report.Proof.Method), Hash: board.Hash(report.Proof.Hash),
		Nonces: report.Proof.Nonces, Signatures: report.Proof.Signatures, Request: report.Proof.Request,
	}
	for _, nonce := range p.Nonces {
		if len(nonce) < 12 || bytes.ContainsFunc(nonce, func(r rune) bool { return r > '~' || r < '0' }) {
			return // a nonce that no Line draws
		}
	}
	if err := p.Verify(board.DeviceID(report.Device), key); err != nil {
		t.Errorf("a report whose proof does not hold: %v (nonces %q)", err, nonces)
	}
	facts := board.Record{SKU: "s", Station: "s", Device: board.DeviceID(report.Device), Key: key, ReadAt: time.Unix(0, 0).UTC(), Generation: 1, Facts: report.Facts, Proof: &p}
	if err := facts.Check(); err != nil {
		t.Errorf("a report that makes no record: %v", err)
	}
}

// TestFuzzSeeds: the seeds reach the check of a proof, so the property is not
// empty.
func TestFuzzSeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, b := range []*fixtures.Board{newBoard(), newCSRBoard(), newReportBoard()} {
			name := b.Dialect
			if name == "" {
				name = "ti-at"
			}
			report := mustRead(t, mustDialect(t, name), b)
			var nonces []string
			for _, nonce := range report.Proof.Nonces {
				nonces = append(nonces, string(nonce))
			}
			fuzzProof(t, report, nonces)
		}
	})
}
