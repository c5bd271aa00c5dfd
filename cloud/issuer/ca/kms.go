package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"secretfree/cloud/awsconfig"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// kmsTimeout caps a signature whose caller can pass no context.
const kmsTimeout = 20 * time.Second

// KMSConfig names a key of AWS KMS. What signs is an ECC_NIST_P256 key for
// SIGN_VERIFY and needs kms:GetPublicKey and kms:Sign; what KMSMac derives from
// is an HMAC_256 key for GENERATE_VERIFY_MAC and needs kms:GenerateMac. Each is
// needed on that key alone. A policy that names an alias instead needs the
// condition kms:RequestAlias.
type KMSConfig struct {
	KeyID    string // its id or ARN, or an alias
	Region   string // empty: the SDK's usual places
	Endpoint string // empty for AWS's own

	test awsTest
}

func (c KMSConfig) client(ctx context.Context) (*kms.Client, error) {
	if c.KeyID == "" {
		return nil, errors.New("no key is named")
	}
	loaded, _, err := awsconfig.Load(ctx, c.Region)
	if err != nil {
		return nil, err
	}
	return kms.NewFromConfig(loaded, func(o *kms.Options) {
		o.HTTPSignerV4 = awsconfig.Signer{}
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		if c.test.http != nil {
			o.HTTPClient = c.test.http
		}
	}), nil
}

// KMSSigner is a crypto.Signer whose key stays in AWS KMS. It signs SHA-256
// digests with ECDSA on P-256. Its signatures of one digest differ each time.
// Any number of callers may use it at once. It is made by OpenKMSSigner.
type KMSSigner struct {
	client *kms.Client
	keyID  string
	public *ecdsa.PublicKey
	ctx    context.Context // of what is signed; nil means of its own, of kmsTimeout
}

// OpenKMSSigner asks KMS for the public key, so it fails in an outage.
func OpenKMSSigner(ctx context.Context, c KMSConfig) (*KMSSigner, error) {
	client, err := c.client(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the key in KMS: %w", err)
	}
	out, err := client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: aws.String(c.KeyID)})
	if err != nil {
		return nil, awsconfig.Fault("opening the key in KMS: asking for its public key", err)
	}
	public, err := x509.ParsePKIXPublicKey(out.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("opening the key in KMS: its public key: %w", err)
	}
	p256, ok := public.(*ecdsa.PublicKey)
	if !ok || p256.Curve != elliptic.P256() || out.KeyUsage != types.KeyUsageTypeSignVerify {
		return nil, fmt.Errorf("opening the key in KMS: it is a key %s for %s, want %s for %s",
			out.KeySpec, out.KeyUsage, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
	}
	return &KMSSigner{client: client, keyID: c.KeyID, public: p256}, nil
}

// Public is that of crypto.Signer: an *ecdsa.PublicKey.
func (s *KMSSigner) Public() crypto.PublicKey { return s.public }

// in is s for what is done in a context.
func (s *KMSSigner) in(ctx context.Context) *KMSSigner {
	bound := *s
	bound.ctx = ctx
	return &bound
}

// Sign is that of crypto.Signer. The signature is verified before it is
// returned.
func (s *KMSSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, fmt.Errorf("signing in KMS: a digest by %v of %d bytes, want SHA-256", opts.HashFunc(), len(digest))
	}
	ctx := s.ctx
	if ctx == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.Background(), kmsTimeout)
		defer cancel()
	}
	out, err := s.client.Sign(ctx, &kms.SignInput{
		KeyId: aws.String(s.keyID), Message: digest, MessageType: types.MessageTypeDigest,
		SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256,
	})
	if err != nil {
		return nil, awsconfig.Fault("signing in KMS", err)
	}
	if !ecdsa.VerifyASN1(s.public, digest, out.Signature) {
		return nil, errors.New("signing in KMS: the signature is not by the key that was opened")
	}
	return out.Signature, nil
}

// KMSMac derives 32 secret bytes from a key in KMS and a label (1 to 4096
// bytes). For one key and label they are always the same, so that any number of
// processes share them, and a new one has them again.
func KMSMac(ctx context.Context, c KMSConfig, label string) ([]byte, error) {
	client, err := c.client(ctx)
	if err != nil {
		return nil, fmt.Errorf("deriving a secret in KMS: %w", err)
	}
	out, err := client.GenerateMac(ctx, &kms.GenerateMacInput{
		KeyId: aws.String(c.KeyID), Message: []byte(label), MacAlgorithm: types.MacAlgorithmSpecHmacSha256,
	})
	if err != nil {
		return nil, awsconfig.Fault("deriving a secret in KMS", err)
	}
	if len(out.Mac) != 32 {
		return nil, fmt.Errorf("deriving a secret in KMS: %d bytes came, want 32", len(out.Mac))
	}
	return out.Mac, nil
}
