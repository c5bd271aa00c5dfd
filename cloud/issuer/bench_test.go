package issuer

import (
	"crypto/x509"
	"testing"
	"time"

	"secretfree/station/board"
)

// BenchmarkFirstIssue sets the first certificate of a fresh device, from the bytes of its request on and without HTTP, against the least that must be done for
// it: parse the request, check its signature, open the envelope, and sign. What is on top is the decision, among it the
// signatures of the factory's proof, and the check of what the CA returned, with its chain. The registry and the
// claims are in memory. The ratio is our time over the other: 1 is the best.
func BenchmarkFirstIssue(b *testing.B) {
	w := newWorld(b, localCA(b))
	ca := localCA(b)
	var ours, bare time.Duration
	for b.Loop() {
		b.StopTimer()
		device := newSimulated(b)
		item := enrolment(b, device.record(b, w.station), w.station)
		w.registry.put(item)
		der := device.csr().der(b)
		b.StartTimer()

		start := time.Now()
		request, err := ParseRequest(der)
		if err != nil {
			b.Fatal(err)
		}
		issued, err := w.issuer.Issue(b.Context(), request, testCA)
		if err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)

		b.StopTimer()
		leaf, err := x509.ParseCertificate(issued.Leaf)
		if err != nil {
			b.Fatal(err)
		}
		template := deviceTemplate(device.id, item.Key, Serial(leaf.SerialNumber.FillBytes(make([]byte, 16))), leaf.NotBefore, leaf.NotAfter)
		b.StartTimer()

		start = time.Now()
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			b.Fatal(err)
		}
		if err := csr.CheckSignature(); err != nil {
			b.Fatal(err)
		}
		if _, err := board.OpenEnvelope(item.Envelope, w.station.verifier); err != nil {
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
