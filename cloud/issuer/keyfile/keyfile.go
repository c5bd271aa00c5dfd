// Package keyfile reads and writes the files of a certificate authority:
// encrypted private keys, passphrases and certificates.
package keyfile

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/youmark/pkcs8"
)

const (
	maxPEMFile    = 64 << 10
	maxPassphrase = 1024
	// pbkdf2Iterations of HMAC-SHA-256: what OWASP asks for in 2023 and later.
	// It costs a quarter of a second at start.
	pbkdf2Iterations = 600_000
	maxCertificates  = 6 // certificates of a file: of a chain, those between the issuing CA and the root
)

// Encrypt is the text of a key file: PEM of encrypted PKCS #8, as ca.InitLocal
// writes it. The iterations are those of PBKDF2: 0 means 600 000, and only
// tests want others. An empty passphrase is refused. No error tells of the key.
func Encrypt(key *ecdsa.PrivateKey, passphrase []byte, iterations int) ([]byte, error) {
	if len(passphrase) == 0 {
		return nil, errors.New("encrypting the key: the passphrase is empty")
	}
	if iterations == 0 {
		iterations = pbkdf2Iterations
	}
	der, err := pkcs8.MarshalPrivateKey(key, passphrase, &pkcs8.Opts{
		Cipher:  pkcs8.AES256CBC,
		KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: iterations, HMACHash: crypto.SHA256},
	})
	if err != nil {
		return nil, errors.New("encrypting the key") // the library's error may speak of the key
	}
	return pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}), nil
}

// Passphrase reads a passphrase from a file: its text without the line end. A
// file that is empty or that anybody on the machine may read is refused.
func Passphrase(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the passphrase: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the passphrase: %w", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("reading the passphrase: everybody may use %s; run: chmod 600 %[1]s", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPassphrase+1))
	if err != nil {
		return nil, fmt.Errorf("reading the passphrase: %w", err)
	}
	if len(text) > maxPassphrase {
		return nil, fmt.Errorf("reading the passphrase: %s is longer than %d bytes", path, maxPassphrase)
	}
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if len(text) == 0 {
		return nil, fmt.Errorf("reading the passphrase: %s is empty", path)
	}
	return text, nil
}

// Block reads a file that is one PEM block. What is in it stays out of errors.
func Block(path, label string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPEMFile))
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	switch {
	case block == nil || len(bytes.TrimSpace(rest)) > 0:
		return nil, fmt.Errorf("%s is not one PEM block", path)
	case block.Type == "PRIVATE KEY" || block.Type == "EC PRIVATE KEY":
		return nil, fmt.Errorf("%s is not encrypted; encrypt it with: openssl pkcs8 -topk8 -v2 aes-256-cbc", path)
	case block.Type != label:
		return nil, fmt.Errorf("%s is not a PEM block %s", path, label)
	}
	return block.Bytes, nil
}

// Read reads what Encrypt wrote: an encrypted P-256 key. No error tells of the
// key or the passphrase.
func Read(path string, passphrase []byte) (*ecdsa.PrivateKey, error) {
	der, err := Block(path, "ENCRYPTED PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := pkcs8.ParsePKCS8PrivateKeyECDSA(der, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s: wrong passphrase, or not an encrypted ECDSA key", path)
	}
	if key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s: not a P-256 key", path)
	}
	return key, nil
}

// Certificates reads a file of one PEM certificate or several.
func Certificates(path string) ([]*x509.Certificate, error) {
	found, err := Chain(path)
	if err == nil && len(found) == 0 {
		return nil, fmt.Errorf("%s is not there, or holds no certificate", path)
	}
	return found, err
}

func Certificate(path string) (*x509.Certificate, error) {
	der, err := Block(path, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return certificate, nil
}

// Chain reads certificates one after another. Where there is no file there are
// none.
func Chain(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for len(bytes.TrimSpace(text)) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" || len(chain) == maxCertificates {
			return nil, fmt.Errorf("%s is not 1 to %d certificates", path, maxCertificates)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		chain, text = append(chain, certificate), rest
	}
	return chain, nil
}
