package issuer

// Refusal is the stable name of a reason why a request gets no certificate. It
// is an error: errors.Is finds a named one, errors.AsType the name. Logs and
// metrics use the text; strangers never see it.
type Refusal string

// What makes the bytes no request at all (400, malformed).
const (
	NoRequest   Refusal = "no-request"    // neither a header nor a body
	TwoRequests Refusal = "two-requests"  // a header and a body, or two headers
	ContentType Refusal = "content-type"  // a body that is not application/pkcs10
	TooLarge    Refusal = "too-large"     // text or DER above the caps
	NotBase64   Refusal = "not-base64"    // strict RFC 4648, with padding
	NotOnePEM   Refusal = "not-one-pem"   // not exactly one PEM block of a request, without headers
	NotARequest Refusal = "not-a-request" // not PKCS #10 in DER, bytes after it, a point that is off its curve
	NoSignature Refusal = "no-signature"  // a challenge without a signature, or the reverse
)

// What Decide refuses (403, refused), in the order in which it looks.
const (
	KeyType            Refusal = "key-type"
	SignatureAlgorithm Refusal = "signature-algorithm"
	CSRSignature       Refusal = "csr-signature"
	NoCN               Refusal = "no-cn"
	SeveralCN          Refusal = "several-cn"
	CNNotADeviceID     Refusal = "cn-not-a-device-id"
	ExtraNames         Refusal = "extra-names"
	CARequested        Refusal = "ca-requested"
	NotEnrolled        Refusal = "not-enrolled"
	KeyMismatch        Refusal = "key-mismatch"
	ItemMismatch       Refusal = "item-mismatch"
	NoEnvelope         Refusal = "no-envelope"
	BadRecord          Refusal = "bad-record"
	UntrustedRecord    Refusal = "untrusted-record"
	ForeignSKU         Refusal = "foreign-sku"
	RecordMismatch     Refusal = "record-mismatch"
	RecordProof        Refusal = "record-proof"
	StateHeld          Refusal = "state-held"
	StateScrapped      Refusal = "state-scrapped"
	StateRevoked       Refusal = "state-revoked"
	StateUnknown       Refusal = "state-unknown"
	GenerationTooOld   Refusal = "generation-too-old"
	LotHeld            Refusal = "lot-held"
	SeveralChallenges  Refusal = "several-challenges"
	BadChallenge       Refusal = "bad-challenge" // it is not one of this issuer
	ChallengeExpired   Refusal = "challenge-expired"
	ChallengeSignature Refusal = "challenge-signature" // another key signed it
	NoChallenge        Refusal = "no-challenge"        // the policy asks for one
)

// What is refused after Decide, by what the device has had already.
const (
	// ChallengeReplayed: the challenge has opened an earlier epoch.
	ChallengeReplayed Refusal = "challenge-replayed"
	// CertificateExpired: the certificate of the epoch has expired, and a
	// repeat would only give the same one again. A fresh request opens the next
	// epoch; so does an operator.
	CertificateExpired Refusal = "certificate-expired"
	// CertificateRevoked: only an operator opens another epoch.
	CertificateRevoked Refusal = "certificate-revoked"
	// NoPeer: a request to renew that was not authenticated by the certificate
	// that it renews.
	NoPeer Refusal = "no-peer"
)

func (r Refusal) Error() string { return string(r) }

// Malformed reports whether r says that the bytes were no request, rather than
// one that is refused.
func (r Refusal) Malformed() bool {
	switch r {
	case NoRequest, TwoRequests, ContentType, TooLarge, NotBase64, NotOnePEM, NotARequest, NoSignature:
		return true
	}
	return false
}
