package issuer

// Refusal is the stable name of a reason why a request gets no certificate. It is an error: errors.Is
// finds a named one, errors.AsType the name. Logs and metrics use the text; strangers never see it.
type Refusal string

// What makes the bytes no request at all (400, malformed).
const (
	NoRequest   Refusal = "no-request"    // neither a header nor a body
	TwoRequests Refusal = "two-requests"  // a header and a body, or two headers
	ContentType Refusal = "content-type"  // a body that is not application/pkcs10
	TooLarge    Refusal = "too-large"     // text or DER above the caps
	NotBase64   Refusal = "not-base64"    // strict RFC 4648, with padding
	NotOnePEM   Refusal = "not-one-pem"   // not exactly one PEM block of a request, without headers
	NotARequest Refusal = "not-a-request" // not PKCS #10, bytes after it, a key that is off its curve
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
)

// CertificateExpired is what Issue refuses with after Decide: the one certificate of this device, key and
// epoch has expired, and a repeat would only give the same one again. A new generation gives a new one.
const CertificateExpired Refusal = "certificate-expired"

func (r Refusal) Error() string { return string(r) }

// Malformed reports whether r says that the bytes were no request, rather than one that is refused.
func (r Refusal) Malformed() bool {
	switch r {
	case NoRequest, TwoRequests, ContentType, TooLarge, NotBase64, NotOnePEM, NotARequest:
		return true
	}
	return false
}
