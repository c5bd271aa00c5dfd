package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"secretfree/cloud/issuer/keyfile"
)

// The files of a delegated responder beside those of a local CA, if it has one.
// The key has the passphrase of the issuing key.
const (
	responderCertificateFile = "ocsp.pem"
	responderKeyFile         = "ocsp.key"
)

// responder answers OCSP in the place of a CA.
type responder struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// readResponder reads that of the CA in a folder; nil if there is none.
func readResponder(config LocalConfig, passphrase []byte, issuing *x509.Certificate) (*responder, error) {
	dir := config.Dir
	certificate, err := keyfile.Certificate(filepath.Join(dir, responderCertificateFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(dir, responderKeyFile)); err == nil {
			return nil, fmt.Errorf("%s is there without %s", responderKeyFile, responderCertificateFile)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if passphrase == nil { // the CA's own key is in KMS
		if passphrase, err = keyfile.Passphrase(config.PassphraseFile); err != nil {
			return nil, err
		}
	}
	key, err := keyfile.Read(filepath.Join(dir, responderKeyFile), passphrase)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(certificate.PublicKey) {
		return nil, fmt.Errorf("the key in %s is not that of the certificate in %s", responderKeyFile, responderCertificateFile)
	}
	if err := certificate.CheckSignatureFrom(issuing); err != nil {
		return nil, fmt.Errorf("the certificate in %s is not of the CA in %s: %w", responderCertificateFile, issuingCertificateFile, err)
	}
	if certificate.IsCA || len(certificate.ExtKeyUsage) != 1 || certificate.ExtKeyUsage[0] != x509.ExtKeyUsageOCSPSigning {
		return nil, fmt.Errorf("the certificate in %s is not for OCSP signing alone", responderCertificateFile)
	}
	return &responder{certificate, key}, nil
}

// Responder is the delegated responder of OCSP, while its certificate is valid;
// otherwise nil and the issuing CA's own key.
func (ca *Local) Responder(ctx context.Context, now time.Time) (*x509.Certificate, crypto.Signer) {
	if d := ca.responder; d != nil && now.After(d.certificate.NotBefore) && now.Before(d.certificate.NotAfter) {
		return d.certificate, d.key
	}
	return nil, ca.Signer(ctx)
}
