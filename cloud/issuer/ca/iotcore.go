package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iot"
	"github.com/aws/aws-sdk-go-v2/service/iot/types"

	"secretfree/cloud/awsconfig"
	"secretfree/cloud/issuer"
	"secretfree/station/board"
)

// IoTCoreConfig says where AWS IoT Core is that signs. Issue needs
// iot:CreateCertificateFromCsr on * and iot:DescribeCertificate on cert/*,
// Revoke iot:UpdateCertificate on cert/*, and Sweep iot:ListCertificates on *
// and iot:DeleteCertificate and iot:DescribeCertificate on cert/*.
type IoTCoreConfig struct {
	Region   string // empty: the SDK's usual places
	Endpoint string // empty for AWS's own

	test awsTest
}

func (c IoTCoreConfig) client(ctx context.Context) (*iot.Client, error) {
	loaded, _, err := awsconfig.Load(ctx, c.Region)
	if err != nil {
		return nil, err
	}
	return iot.NewFromConfig(loaded, func(o *iot.Options) {
		o.HTTPSignerV4 = awsconfig.Signer{}
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		if c.test.http != nil {
			o.HTTPClient = c.test.http
		}
	}), nil
}

// IoTCore lets AWS IoT Core's own CA sign. That chooses subject and validity
// itself, gives no chain, and makes another certificate each time it is asked.
// So an answer that is lost leaves a certificate that nobody has: it is
// inactive, and Sweep deletes it. It is made by OpenIoTCore.
type IoTCore struct{ client *iot.Client }

// OpenIoTCore makes the client. It makes no call.
func OpenIoTCore(ctx context.Context, c IoTCoreConfig) (*IoTCore, error) {
	client, err := c.client(ctx)
	if err != nil {
		return nil, fmt.Errorf("CA in AWS IoT Core: %w", err)
	}
	return &IoTCore{client}, nil
}

// Profile is that of the interface CA.
func (ca *IoTCore) Profile() issuer.Profile { return issuer.Profile{CAControlled: true} }

// iotMemo is the certificate that was made for a claim.
type iotMemo struct {
	Version       int    `json:"version"`
	CertificateID string `json:"certificateId"`
}

const iotMemoVersion = 1

func (m iotMemo) text() string {
	m.Version = iotMemoVersion
	text, _ := json.Marshal(m) // a string and a number
	return string(text)
}

// parseIoTMemo gives the zero value for no memo.
func parseIoTMemo(text string) (iotMemo, error) {
	var m iotMemo
	if text == "" {
		return m, nil
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil || m.text() != text || !isCertificateID(m.CertificateID) {
		return iotMemo{}, fmt.Errorf("%w: the memo is not one of AWS IoT Core: %.200q", issuer.ErrBadClaim, text)
	}
	return m, nil
}

// certificateID is the name of a certificate in AWS IoT Core: SHA-256 of its
// DER, in hex.
func certificateID(leaf []byte) string {
	sum := sha256.Sum256(leaf)
	return hex.EncodeToString(sum[:])
}

func isCertificateID(text string) bool {
	raw, err := hex.DecodeString(text)
	return err == nil && len(raw) == sha256.Size && hex.EncodeToString(raw) == text
}

// Issue is that of the interface CA. The certificate is inactive.
func (ca *IoTCore) Issue(ctx context.Context, approved issuer.Approved, claim issuer.Claim, memo issuer.CAState) (issuer.Certificate, error) {
	if err := claim.Covers(approved); err != nil {
		return issuer.Certificate{}, err
	}
	m, err := parseIoTMemo(memo.Read())
	if err != nil {
		return issuer.Certificate{}, err
	}
	if m.CertificateID != "" {
		stored, err := describeCertificate(ctx, ca.client, m.CertificateID)
		if err == nil {
			return issuer.Certificate{Leaf: stored.leaf}, nil
		}
		if _, gone := errors.AsType[*types.ResourceNotFoundException](err); !gone {
			return issuer.Certificate{}, err
		}
		// Somebody deleted it before it was ever active: there may be another.
	}
	out, err := ca.client.CreateCertificateFromCsr(ctx, &iot.CreateCertificateFromCsrInput{
		CertificateSigningRequest: aws.String(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: approved.CSR()}))),
	}, func(o *iot.Options) { o.RetryMaxAttempts = 1 }) // each may make one more
	if err != nil {
		return issuer.Certificate{}, awsconfig.Fault("asking AWS IoT Core for a certificate", err)
	}
	leaf, err := onePEM(aws.ToString(out.CertificatePem))
	if err != nil || certificateID(leaf) != aws.ToString(out.CertificateId) {
		return issuer.Certificate{}, errors.New("asking AWS IoT Core for a certificate: the answer holds none, or that of another id")
	}
	if err := memo.Write(ctx, iotMemo{CertificateID: certificateID(leaf)}.text()); err != nil {
		return issuer.Certificate{}, err
	}
	return issuer.Certificate{Leaf: leaf}, nil
}

// Revoke is that of the interface CA. There is no revocation list: the
// certificate may no more connect.
func (ca *IoTCore) Revoke(ctx context.Context, issuance issuer.Issuance, _ issuer.Reason) error {
	m, err := parseIoTMemo(issuance.CAState)
	if err != nil {
		return err
	}
	if issuance.Certificate != nil {
		m.CertificateID = certificateID(issuance.Certificate.Leaf)
	}
	if m.CertificateID == "" {
		return nil
	}
	return setStatus(ctx, ca.client, m.CertificateID, types.CertificateStatusRevoked)
}

// onePEM reads a certificate's PEM.
func onePEM(text string) ([]byte, error) {
	c, err := issuer.ParseCertificate([]byte(text), nil)
	if err == nil && c.Leaf == nil {
		err = errors.New("it is empty")
	}
	return c.Leaf, err
}

// iotCertificate is one that AWS IoT Core holds.
type iotCertificate struct {
	arn    string
	leaf   []byte
	status types.CertificateStatus
}

// describeCertificate gives an error that wraps types.ResourceNotFoundException
// where there is none.
func describeCertificate(ctx context.Context, client *iot.Client, id string) (iotCertificate, error) {
	out, err := client.DescribeCertificate(ctx, &iot.DescribeCertificateInput{CertificateId: aws.String(id)})
	if err != nil {
		return iotCertificate{}, awsconfig.Fault("looking up a certificate in AWS IoT Core", err)
	}
	if out.CertificateDescription == nil {
		return iotCertificate{}, errors.New("looking up a certificate in AWS IoT Core: the answer is empty")
	}
	d := out.CertificateDescription
	leaf, err := onePEM(aws.ToString(d.CertificatePem))
	if err != nil || certificateID(leaf) != id {
		return iotCertificate{}, fmt.Errorf("looking up a certificate in AWS IoT Core: under the id %s is another", id)
	}
	return iotCertificate{aws.ToString(d.CertificateArn), leaf, d.Status}, nil
}

// setStatus changes the status of a certificate. One that is not known is no
// error, unless it is to be active.
func setStatus(ctx context.Context, client *iot.Client, id string, status types.CertificateStatus) error {
	_, err := client.UpdateCertificate(ctx, &iot.UpdateCertificateInput{CertificateId: aws.String(id), NewStatus: status})
	if _, unknown := errors.AsType[*types.ResourceNotFoundException](err); unknown && status != types.CertificateStatusActive {
		return nil
	}
	if err != nil {
		return awsconfig.Fault(fmt.Sprintf("making a certificate %s in AWS IoT Core", status), err)
	}
	return nil
}

// Orphan is a certificate that AWS IoT Core made for one of our devices and no
// claim knows.
type Orphan struct {
	CertificateID string
	Device        board.DeviceID
	Created       time.Time
	Err           error // why it was not deleted
}

// Sweep deletes what lost answers left: certificates that are inactive, older
// than an hour (olderThan may say longer), for the key of a claim, and known to
// no claim of that device. An active one is never deleted. It goes through all
// certificates of the account and all claims; what it returns before an error
// was done. With dry it deletes nothing.
func (ca *IoTCore) Sweep(ctx context.Context, claims issuer.Claims, olderThan time.Duration, dry bool) ([]Orphan, error) {
	devices := map[board.Fingerprint]board.DeviceID{}
	for issuance, err := range claims.All(ctx) {
		if err != nil {
			return nil, fmt.Errorf("sweeping AWS IoT Core: %w", err)
		}
		devices[issuance.Claim.Fingerprint] = issuance.Claim.Device
	}
	before := time.Now().Add(-max(olderThan, time.Hour))
	var orphans []Orphan
	pages := iot.NewListCertificatesPaginator(ca.client, &iot.ListCertificatesInput{PageSize: aws.Int32(250)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return orphans, awsconfig.Fault("sweeping AWS IoT Core: listing certificates", err)
		}
		for _, c := range page.Certificates {
			if c.Status != types.CertificateStatusInactive || c.CreationDate == nil || !c.CreationDate.Before(before) {
				continue
			}
			o, err := ca.orphan(ctx, claims, devices, aws.ToString(c.CertificateId))
			if err != nil {
				return orphans, fmt.Errorf("sweeping AWS IoT Core: %w", err)
			}
			if o == nil {
				continue
			}
			o.Created = c.CreationDate.UTC()
			if !dry {
				_, err := ca.client.DeleteCertificate(ctx, &iot.DeleteCertificateInput{CertificateId: aws.String(o.CertificateID)})
				if _, gone := errors.AsType[*types.ResourceNotFoundException](err); err != nil && !gone {
					o.Err = awsconfig.Fault("deleting it", err)
				}
			}
			orphans = append(orphans, *o)
		}
	}
	return orphans, nil
}

// orphan is nil for a certificate that is not ours, or that a claim knows.
func (ca *IoTCore) orphan(ctx context.Context, claims issuer.Claims, devices map[board.Fingerprint]board.DeviceID, id string) (*Orphan, error) {
	stored, err := describeCertificate(ctx, ca.client, id)
	if _, gone := errors.AsType[*types.ResourceNotFoundException](err); gone {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(stored.leaf)
	if err != nil {
		return nil, nil // another's
	}
	key, err := board.NewKey(leaf.PublicKey, leaf.RawSubjectPublicKeyInfo)
	if err != nil {
		return nil, nil // another's
	}
	device, ours := devices[key.Fingerprint()]
	if !ours {
		return nil, nil
	}
	had, err := claims.Issuances(ctx, device)
	if err != nil {
		return nil, err
	}
	for _, i := range had {
		if i.Certificate != nil && certificateID(i.Certificate.Leaf) == id {
			return nil, nil
		}
		if m, err := parseIoTMemo(i.CAState); err == nil && m.CertificateID == id { // the memo may be another CA's
			return nil, nil
		}
	}
	return &Orphan{CertificateID: id, Device: device}, nil
}
