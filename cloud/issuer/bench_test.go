package issuer_test

import (
	"crypto/x509"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/station/board"
)

// BenchmarkFirstIssue sets the first certificate of a fresh device, from the
// bytes of its request on and without HTTP, against the least that must be done
// for it: parse the request, check its signature, open the envelope, and sign.
// What is on top is the decision, among it the signatures of the factory's
// proof, and the check of what the CA returned, with its chain. The registry
// and the claims are in memory. The ratio is our time over the other: 1 is the
// best.
func BenchmarkFirstIssue(b *testing.B) {
	w := issuertest.NewEnv(b, catest.Local(b))
	ca := catest.Local(b)
	var ours, bare time.Duration
	for b.Loop() {
		b.StopTimer()
		device := issuertest.NewBoard(b)
		item := issuertest.Enrolment(b, device.Record(b, w.Station), w.Station)
		w.Registry.Put(item)
		der := device.CSR().DER(b)
		b.StartTimer()

		start := time.Now()
		request, err := issuer.ParseRequest(der)
		if err != nil {
			b.Fatal(err)
		}
		issued, err := w.Issuer.Issue(b.Context(), request, issuertest.CAName)
		if err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)

		b.StopTimer()
		leaf, err := x509.ParseCertificate(issued.Leaf)
		if err != nil {
			b.Fatal(err)
		}
		template := issuertest.DeviceTemplate(device.ID, item.Key, issuer.Serial(leaf.SerialNumber.FillBytes(make([]byte, 16))), leaf.NotBefore, leaf.NotAfter)
		b.StartTimer()

		start = time.Now()
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			b.Fatal(err)
		}
		if err := csr.CheckSignature(); err != nil {
			b.Fatal(err)
		}
		if _, err := board.OpenEnvelope(item.Envelope, w.Station.Verifier); err != nil {
			b.Fatal(err)
		}
		if _, err := x509.CreateCertificate(nil, template, ca.Issuing(), csr.PublicKey, ca.Signer(b.Context())); err != nil {
			b.Fatal(err)
		}
		bare += time.Since(start)
	}
	b.ReportMetric(float64(ours)/float64(bare), "times-bare")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "issue-µs")
}
