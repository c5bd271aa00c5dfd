package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/server"
	"secretfree/fixtures"
	"secretfree/spool/journal"
	"secretfree/station"
)

const (
	patience = 20 * time.Second // with one step
	glance   = 20 * time.Millisecond
)

// story walks one board from the factory to its certificate, and some others to
// where they belong.
type story struct {
	*factory
	out io.Writer
	// good is the board that was enrolled last.
	good *fixtures.Board
}

func (s *story) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

func (s *story) tell(ctx context.Context) (told summary, err error) {
	before, err := s.journal()
	if err != nil {
		return told, err
	}
	s.say("\nAt the factory, on a station with the slots A and B:")
	if err := s.atTheFactory(ctx); err != nil {
		return told, err
	}
	s.say("\nAt a customer's home, with an issuer and a CA that was made just now:")
	if told.Certificates, told.Forgeries, err = s.atHome(ctx); err != nil {
		return told, err
	}
	after, err := s.journal()
	if err != nil {
		return told, err
	}
	told.Unplugged = 1 // await would have failed otherwise
	told.Records, told.Repeats, told.Refusals = after.Records-before.Records, after.Repeats-before.Repeats, after.Failed-before.Failed-told.Unplugged
	if told.Records != 1 || told.Repeats != 1 || told.Refusals != 2 {
		return told, fmt.Errorf("the journal has %d new records, %d repeats and %d refusals, want 1, 1 and 2", told.Records, told.Repeats, told.Refusals)
	}
	return told, nil
}

func (s *story) atTheFactory(ctx context.Context) error {
	a, b := s.sockets[0], s.sockets[1]
	good := newBoard()
	if err := a.plug(good); err != nil {
		return err
	}
	slot, err := s.await(ctx, 0, func(slot station.SlotStatus) bool { return slot.State == station.Passed && slot.Confirmed })
	if err != nil {
		return fmt.Errorf("a good board: %w", err)
	}
	if slot.Device != good.ID() {
		return fmt.Errorf("a good board: the station read %s, the board is %s", slot.Device, good.ID())
	}
	s.good = good
	s.say(" 1. A good board in slot A: PASS. %s is on disk, and in the registry.", short(good.ID()))

	slot, err = s.try(ctx, 0, again(good), station.Passed)
	if err != nil {
		return fmt.Errorf("the same board again: %w", err)
	}
	s.say(" 2. The same board again: PASS. %s", slot.Advice)

	otherKey := newBoard()
	otherKey.Device = good.Device
	if slot, err = s.try(ctx, 0, otherKey, station.Failed); err == nil && slot.Reason != station.ReasonDeviceConflict {
		err = fmt.Errorf("it failed with %s", slot.Reason)
	}
	if err != nil {
		return fmt.Errorf("a board with a known id and another key: %w", err)
	}
	s.say(" 3. A board with that id and another key: FAIL, %s. %s", slot.Reason, slot.Advice)

	otherID := newBoard()
	otherID.Key = good.Key
	if slot, err = s.try(ctx, 0, otherID, station.Failed); err == nil && slot.Reason != station.ReasonKeyConflict {
		err = fmt.Errorf("it failed with %s", slot.Reason)
	}
	if err != nil {
		return fmt.Errorf("a board with a known key under another id: %w", err)
	}
	s.say(" 4. A board with that key under another id: FAIL, %s. %s", slot.Reason, slot.Advice)
	if err := a.unplug(); err != nil {
		return err
	}

	torn := newBoard()
	torn.Sign = time.Minute // so that there is a middle to be pulled out in
	if err := b.plug(torn); err != nil {
		return err
	}
	if _, err := s.await(ctx, 1, func(slot station.SlotStatus) bool { return slot.State == station.Reading && !slot.Searching }); err != nil {
		return fmt.Errorf("a board that is unplugged in mid-read: %w", err)
	}
	if err := b.tear(); err != nil {
		return err
	}
	if slot, err = s.await(ctx, 1, func(slot station.SlotStatus) bool { return slot.State == station.Failed }); err == nil && slot.Reason != station.ReasonUnplugged {
		err = fmt.Errorf("it failed with %s", slot.Reason)
	}
	if err != nil {
		return fmt.Errorf("a board that is unplugged in mid-read: %w", err)
	}
	s.say(" 5. A board that is pulled out of slot B in mid-read: FAIL, %s. %s", slot.Reason, slot.Advice)
	return b.unplug() // the cable is back
}

// try waits until the slot is free, and brings a board to its verdict.
func (s *story) try(ctx context.Context, i int, b *fixtures.Board, verdict station.State) (station.SlotStatus, error) {
	if err := s.sockets[i].unplug(); err != nil {
		return station.SlotStatus{}, err
	}
	if _, err := s.await(ctx, i, func(slot station.SlotStatus) bool { return slot.State == station.Empty }); err != nil {
		return station.SlotStatus{}, err
	}
	if err := s.sockets[i].plug(b); err != nil {
		return station.SlotStatus{}, err
	}
	slot, err := s.await(ctx, i, func(slot station.SlotStatus) bool {
		return slot.State == station.Passed || slot.State == station.Failed
	})
	if err == nil && slot.State != verdict {
		err = fmt.Errorf("the slot shows %s (%s), want %s", slot.State, slot.Reason, verdict)
	}
	return slot, err
}

// await looks at a slot until it is as wanted.
func (s *story) await(ctx context.Context, i int, want func(station.SlotStatus) bool) (station.SlotStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(glance)
	defer ticker.Stop()
	for {
		slot := s.station.Status().Slots[i]
		if want(slot) {
			return slot, nil
		}
		select {
		case <-ticker.C:
		case err := <-s.errs:
			s.errs <- err
			return slot, fmt.Errorf("a daemon ended: %w", err)
		case <-ctx.Done():
			return slot, fmt.Errorf("slot %s still shows %s (%s) %s after %s; see stationd.log", slot.Name, slot.State, slot.Reason, slot.Device, patience)
		}
	}
}

func (s *story) atHome(ctx context.Context) (certificates, forgeries int, err error) {
	id := s.good.ID()
	csr, err := s.good.CSR(id, x509.ECDSAWithSHA1)
	if err != nil {
		return 0, 0, err
	}
	first, err := s.certificate(ctx, csr)
	if err != nil {
		return 0, 0, fmt.Errorf("the board asks for its certificate: %w", err)
	}
	leaf, err := s.check(first, id)
	if err != nil {
		return 0, 0, fmt.Errorf("the board's certificate: %w", err)
	}
	s.say(" 6. The board of step 1 sends a request signed with its key, and gets a certificate until %s for %s;\n    crypto/x509 verifies it up to the root.", leaf.NotAfter.Format(time.DateOnly), short(id))

	if csr, err = s.good.CSR(id, x509.ECDSAWithSHA256); err != nil {
		return 0, 0, err
	}
	second, err := s.certificate(ctx, csr)
	if err != nil {
		return 0, 0, fmt.Errorf("the board asks again: %w", err)
	}
	if !bytes.Equal(first, second) {
		return 0, 0, errors.New("the board asks again: it got another certificate")
	}
	s.say(" 7. It asks again, with a new request: the same certificate, byte for byte.")

	stranger := newBoard()
	if csr, err = stranger.CSR(id, x509.ECDSAWithSHA256); err != nil {
		return 0, 0, err
	}
	if err := s.refuse(ctx, csr, issuer.KeyMismatch); err != nil {
		return 0, 0, fmt.Errorf("a stranger with a key of his own: %w", err)
	}
	spliced, err := splice(csr, s.good.SPKI(), stranger.SPKI())
	if err != nil {
		return 0, 0, err
	}
	if err := s.refuse(ctx, spliced, issuer.CSRSignature); err != nil {
		return 0, 0, fmt.Errorf("a stranger with the board's public key: %w", err)
	}
	s.say(" 8. A stranger asks for that id with a key of his own: refused. With the board's public key and no private\n    one: refused. He reads the same answer both times; the issuer's log names the reason.")
	return 1, 2, nil
}

// ask sends a request as the reference's clients do. refused is the stranger's
// answer.
func (s *story) ask(ctx context.Context, csr []byte) (certificate []byte, refused string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.issuer.Addr()+"/new", nil)
	if err != nil {
		return nil, "", err
	}
	request.Header.Set(server.HeaderCSR, base64.StdEncoding.EncodeToString(csr))
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, "", fmt.Errorf("asking the issuer: %w", err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return nil, "", fmt.Errorf("asking the issuer: %w", err)
	}
	var got struct {
		Certificate      string `json:"certificate"`
		CertificateChain string `json:"certificateChain"`
		Error            string `json:"error"`
	}
	if err := json.Unmarshal(body, &got); err != nil {
		return nil, "", fmt.Errorf("asking the issuer: %s and no JSON", answer.Status)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Sprintf("%d %s", answer.StatusCode, got.Error), nil
	}
	return []byte(got.Certificate + got.CertificateChain), "", nil
}

// certificate sends a request that must be answered with one.
func (s *story) certificate(ctx context.Context, csr []byte) ([]byte, error) {
	text, refused, err := s.ask(ctx, csr)
	if err == nil && refused != "" {
		err = fmt.Errorf("the issuer answers %s; see issuerd.log", refused)
	}
	return text, err
}

// check verifies a certificate and its chain as a broker in the cloud does.
func (s *story) check(text []byte, id string) (*x509.Certificate, error) {
	var leaf *x509.Certificate
	between := x509.NewCertPool()
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if leaf == nil {
			leaf = certificate
		} else {
			between.AddCert(certificate)
		}
	}
	if leaf == nil {
		return nil, errors.New("the issuer's answer holds none")
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: s.roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, err
	}
	if leaf.Subject.CommonName != id || !s.good.Key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("it is for another device or key")
	}
	return leaf, nil
}

// refuse sends a forged request; the stranger must learn nothing, and the log
// the reason.
func (s *story) refuse(ctx context.Context, csr []byte, want issuer.Refusal) error {
	certificate, refused, err := s.ask(ctx, csr)
	if err != nil {
		return err
	}
	if certificate != nil || refused != "403 refused" {
		return fmt.Errorf("the issuer answers %q, want 403 refused", refused)
	}
	log, err := os.ReadFile(s.path("issuerd.log"))
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, fmt.Sprintf("%q", want)) {
		return fmt.Errorf("the issuer's log does not say %s: %s", want, last)
	}
	return nil
}

// splice puts another public key of the same length into a request; its
// signature does not know.
func splice(csr, in, out []byte) ([]byte, error) {
	block, _ := pem.Decode(csr)
	if block == nil || bytes.Count(block.Bytes, out) != 1 || len(in) != len(out) {
		return nil, errors.New("making a forged request: there is no key to replace")
	}
	block.Bytes = bytes.Replace(block.Bytes, out, in, 1)
	return pem.EncodeToMemory(block), nil
}

// journal checks the whole journal and counts what it holds.
func (s *story) journal() (journal.VerifyReport, error) {
	text, err := os.ReadFile(s.path("state/station.pub"))
	if err != nil {
		return journal.VerifyReport{}, err
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(text)))
	if err != nil {
		return journal.VerifyReport{}, err
	}
	return journal.VerifyDir(s.path("state"), verifier)
}

// short is the begin of a device id, enough to tell boards apart.
func short(id string) string { return id[:8] + "…" }
