// Package certreq reads certificate signing requests (PKCS #10, RFC 2986). The
// station, the record's proof and the issuer read requests with this one
// parser, so that all of them see the same names and the same key.
//
// Parse checks the syntax alone. The caller decides about the content: the key
// type, the names, the extensions, the signature. So a request with an unusual
// but well-formed content is refused for that content, by name.
//
// The syntax is DER: one minimal length per element, no bytes after the request
// and no unknown element inside it. There are four deliberate liberties, which
// OpenSSL takes too:
//
//   - The attributes field [0] may be absent. RFC 2986 demands it; some firmware
//     leaves it out where it is empty.
//   - The version may be any INTEGER. RFC 2986 knows 0 alone, but the number
//     identifies nothing, and the syntax that follows is checked anyway.
//   - A SET may be empty, and its elements may stand in any order.
//   - An attribute value may be anything. Text says whether it is text.
//
// The signature is checked over the bytes as they came.
package certreq

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

// MaxBytes is the largest request that Parse reads. A request of a CC32xx takes
// about 500 bytes, one with an RSA key of 8192 bits about 2300.
const MaxBytes = 4096

// ErrSyntax says that the bytes are not a certificate signing request.
var ErrSyntax = errors.New("not a certificate signing request")

// Request is a request whose syntax is right. Nothing in it is trusted yet. Its
// slices share the bytes that were parsed.
type Request struct {
	Raw  []byte // the whole request
	TBS  []byte // CertificationRequestInfo: what the signature covers
	SPKI []byte // SubjectPublicKeyInfo

	RawSubject []byte
	Subject    []NameAttribute // in order, without the nesting in sets
	Attributes []Attribute     // in order

	// Extensions are all that the request asks for, duplicates included. They
	// are nil where ExtensionsErr says why they cannot be read.
	Extensions    []Extension
	ExtensionsErr error

	// Key is nil where KeyErr says why the key cannot be used: an algorithm or
	// a curve without support, or a form that is not the usual one.
	Key    crypto.PublicKey
	KeyErr error

	SignatureAlgorithm x509.SignatureAlgorithm // 0 if unknown
	SignatureOID       string
	Signature          []byte
}

// NameAttribute is an AttributeTypeAndValue of the subject.
type NameAttribute struct {
	Type  string // dotted object identifier
	Value asn1.RawValue
}

// Text returns the value as text; ok is false if it is no well-formed string.
func (a NameAttribute) Text() (text string, ok bool) {
	var value any
	rest, err := asn1.Unmarshal(a.Value.FullBytes, &value)
	if err != nil || len(rest) > 0 {
		return "", false
	}
	text, ok = value.(string)
	return text, ok
}

// Attribute is an attribute of the request, such as challengePassword.
type Attribute struct {
	Type   string // dotted object identifier
	Values []asn1.RawValue
}

// Extension is a certificate extension that the request asks for.
type Extension struct {
	ID       string // dotted object identifier
	Critical bool
	Value    []byte
}

// extensionRequest is the attribute with the extensions (RFC 2985, 5.4.2).
const extensionRequest = "1.2.840.113549.1.9.14"

// Parse reads a request in DER. Its errors wrap ErrSyntax.
func Parse(der []byte) (*Request, error) {
	r, err := parse(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	return r, nil
}

func parse(der []byte) (*Request, error) {
	if len(der) > MaxBytes {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(der), MaxBytes)
	}
	outer, err := sequence(der, 3, 3)
	if err != nil {
		return nil, fmt.Errorf("the request: %w", err)
	}
	info, err := sequence(outer[0].FullBytes, 3, 4)
	if err != nil {
		return nil, fmt.Errorf("its content: %w", err)
	}
	r := &Request{Raw: der, TBS: outer[0].FullBytes, RawSubject: info[1].FullBytes, SPKI: info[2].FullBytes}
	var version int64
	if err := whole(info[0].FullBytes, &version); err != nil {
		return nil, fmt.Errorf("the version: %w", err)
	}
	if r.Subject, err = parseName(r.RawSubject); err != nil {
		return nil, fmt.Errorf("the subject: %w", err)
	}
	if err := r.parseKey(); err != nil {
		return nil, fmt.Errorf("the key: %w", err)
	}
	if len(info) == 4 {
		if r.Attributes, err = parseAttributes(info[3]); err != nil {
			return nil, fmt.Errorf("the attributes: %w", err)
		}
	}
	if r.Extensions, r.ExtensionsErr = parseExtensions(r.Attributes); r.ExtensionsErr != nil {
		r.Extensions, r.ExtensionsErr = nil, fmt.Errorf("the requested extensions: %w", r.ExtensionsErr)
	}
	algorithm, err := parseAlgorithm(outer[1].FullBytes)
	if err != nil {
		return nil, fmt.Errorf("the signature's algorithm: %w", err)
	}
	r.SignatureOID, r.SignatureAlgorithm = algorithm.oid, signatureAlgorithm(outer[1].FullBytes)
	if r.Signature, err = octets(outer[2].FullBytes); err != nil {
		return nil, fmt.Errorf("the signature: %w", err)
	}
	return r, nil
}

// SubjectText returns the text of the subject's one attribute of a type. count
// is the number of attributes of that type. The text is empty where count is
// not 1 or where the value is no text.
func (r *Request) SubjectText(oid string) (text string, count int) {
	for _, a := range r.Subject {
		if a.Type != oid {
			continue
		}
		text, _ = a.Text()
		count++
	}
	if count != 1 {
		return "", count
	}
	return text, count
}

// CheckSignature checks that the owner of Key signed the request. SHA-1 holds:
// stock firmware knows nothing else, and the signature shows possession of the
// key, no more.
func (r *Request) CheckSignature() error {
	if r.Key == nil {
		return fmt.Errorf("checking the signature: %w", r.KeyErr)
	}
	signed := x509.CertificateRequest{
		RawTBSCertificateRequest: r.TBS, PublicKey: r.Key, SignatureAlgorithm: r.SignatureAlgorithm, Signature: r.Signature,
	}
	return signed.CheckSignature()
}

// Kinds of syntax errors. A test tells by them where this parser is stricter
// than the standard library.
var (
	errExtra     = errors.New("elements too many or too few")
	errElement   = errors.New("not an element in DER")
	errBits      = errors.New("a BIT STRING that is not of whole bytes")
	errAttribute = errors.New("want SEQUENCE { OBJECT IDENTIFIER, SET }")
	errPoint     = errors.New("the point is not on its curve")
	errOID       = errors.New("not an object identifier")
)

// whole reads the one element that der is.
func whole(der []byte, to any) error {
	rest, err := asn1.Unmarshal(der, to)
	if err == nil && len(rest) > 0 {
		err = errors.New("bytes after it")
	}
	return err
}

// elements splits a concatenation of DER elements.
func elements(der []byte) (all []asn1.RawValue, err error) {
	for len(der) > 0 {
		var value asn1.RawValue
		if der, err = asn1.Unmarshal(der, &value); err != nil {
			return nil, fmt.Errorf("%w: %w", errElement, err)
		}
		all = append(all, value)
	}
	return all, nil
}

// constructed reads the one element that der is, of a universal type, and
// returns what it holds.
func constructed(der []byte, tag int) ([]asn1.RawValue, error) {
	var value asn1.RawValue
	if err := whole(der, &value); err != nil {
		return nil, err
	}
	if value.Class != asn1.ClassUniversal || value.Tag != tag || !value.IsCompound {
		return nil, fmt.Errorf("an element of class %d and tag %d, want tag %d", value.Class, value.Tag, tag)
	}
	return elements(value.Bytes)
}

// sequence reads a SEQUENCE of least to most elements.
func sequence(der []byte, least, most int) ([]asn1.RawValue, error) {
	all, err := constructed(der, asn1.TagSequence)
	if err == nil && (len(all) < least || len(all) > most) {
		err = fmt.Errorf("%w: %d, want %d to %d", errExtra, len(all), least, most)
	}
	return all, err
}

// objectID returns an object identifier as dotted text. Its arcs have no limit.
func objectID(value asn1.RawValue) (string, error) {
	var oid x509.OID
	if value.Class != asn1.ClassUniversal || value.Tag != asn1.TagOID || value.IsCompound {
		return "", errOID
	}
	if err := oid.UnmarshalBinary(value.Bytes); err != nil {
		return "", fmt.Errorf("%w: %w", errOID, err)
	}
	return oid.String(), nil
}

// octets reads a BIT STRING of whole bytes.
func octets(der []byte) ([]byte, error) {
	var bits asn1.BitString
	if err := whole(der, &bits); err != nil {
		return nil, err
	}
	if bits.BitLength%8 != 0 {
		return nil, errBits
	}
	return bits.Bytes, nil
}

func parseName(der []byte) (name []NameAttribute, err error) {
	sets, err := constructed(der, asn1.TagSequence)
	if err != nil {
		return nil, err
	}
	for _, set := range sets {
		pairs, err := constructed(set.FullBytes, asn1.TagSet)
		if err != nil {
			return nil, err
		}
		for _, pair := range pairs {
			parts, err := sequence(pair.FullBytes, 2, 2)
			if err != nil {
				return nil, err
			}
			oid, err := objectID(parts[0])
			if err != nil {
				return nil, err
			}
			name = append(name, NameAttribute{oid, parts[1]})
		}
	}
	return name, nil
}

func parseAttributes(field asn1.RawValue) (attributes []Attribute, err error) {
	if field.Class != asn1.ClassContextSpecific || field.Tag != 0 || !field.IsCompound {
		return nil, fmt.Errorf("%w: a field of class %d and tag %d, want [0]", errExtra, field.Class, field.Tag)
	}
	all, err := elements(field.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAttribute, err)
	}
	for _, one := range all {
		parts, err := sequence(one.FullBytes, 2, 2)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errAttribute, err)
		}
		oid, err := objectID(parts[0])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errAttribute, err)
		}
		values, err := constructed(parts[1].FullBytes, asn1.TagSet)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errAttribute, err)
		}
		attributes = append(attributes, Attribute{oid, values})
	}
	return attributes, nil
}

func parseExtensions(attributes []Attribute) (extensions []Extension, err error) {
	for _, attribute := range attributes {
		if attribute.Type != extensionRequest {
			continue
		}
		for _, value := range attribute.Values {
			all, err := constructed(value.FullBytes, asn1.TagSequence)
			if err != nil {
				return nil, err
			}
			for _, one := range all {
				extension, err := parseExtension(one.FullBytes)
				if err != nil {
					return nil, err
				}
				extensions = append(extensions, extension)
			}
		}
	}
	return extensions, nil
}

func parseExtension(der []byte) (extension Extension, err error) {
	parts, err := sequence(der, 2, 3)
	if err != nil {
		return Extension{}, err
	}
	if extension.ID, err = objectID(parts[0]); err != nil {
		return Extension{}, err
	}
	if len(parts) == 3 {
		if err := whole(parts[1].FullBytes, &extension.Critical); err != nil {
			return Extension{}, err
		}
	}
	return extension, whole(parts[len(parts)-1].FullBytes, &extension.Value)
}

// algorithm is an AlgorithmIdentifier. Its parameters may be absent.
type algorithm struct {
	oid        string
	parameters []asn1.RawValue
}

func parseAlgorithm(der []byte) (algorithm, error) {
	parts, err := sequence(der, 1, 2)
	if err != nil {
		return algorithm{}, err
	}
	oid, err := objectID(parts[0])
	return algorithm{oid, parts[1:]}, err
}

// signatureAlgorithm names an AlgorithmIdentifier; 0 if it is unknown. The
// standard library knows them all, RSASSA-PSS with its parameters included, but
// reads them only inside a request. So this wraps der in a request without
// content.
func signatureAlgorithm(der []byte) x509.SignatureAlgorithm {
	type content struct {
		Version int
		Subject []asn1.RawValue
		Key     struct {
			Algorithm struct{ OID asn1.ObjectIdentifier }
			Bits      asn1.BitString
		}
		Attributes []asn1.RawValue `asn1:"tag:0"`
	}
	var noContent content
	noContent.Key.Algorithm.OID = asn1.ObjectIdentifier{2, 25} // no key algorithm, so no key is read
	wrapped, err := asn1.Marshal(struct {
		Content   content
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}{noContent, asn1.RawValue{FullBytes: der}, asn1.BitString{}})
	if err != nil {
		return x509.UnknownSignatureAlgorithm
	}
	request, err := x509.ParseCertificateRequest(wrapped)
	if err != nil {
		return x509.UnknownSignatureAlgorithm
	}
	return request.SignatureAlgorithm
}

const ecPublicKey = "1.2.840.10045.2.1"

var curves = map[string]elliptic.Curve{
	"1.3.132.0.33": elliptic.P224(), "1.2.840.10045.3.1.7": elliptic.P256(), "1.3.132.0.34": elliptic.P384(), "1.3.132.0.35": elliptic.P521(),
}

// parseKey sets Key or KeyErr. Its own error says that SPKI is malformed, or
// that its point is not on its curve.
func (r *Request) parseKey() error {
	parts, err := sequence(r.SPKI, 2, 2)
	if err != nil {
		return err
	}
	algorithm, err := parseAlgorithm(parts[0].FullBytes)
	if err != nil {
		return err
	}
	bits, err := octets(parts[1].FullBytes)
	if err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(r.SPKI)
	switch {
	case err == nil:
		r.Key = public
	case algorithm.oid == ecPublicKey:
		r.KeyErr, err = whyNotEC(algorithm.parameters, bits)
		return err
	case x509OIDs[algorithm.oid]:
		r.KeyErr = fmt.Errorf("the key of algorithm %s: %w", algorithm.oid, err)
	default:
		r.KeyErr = fmt.Errorf("the key's algorithm %s is unknown", algorithm.oid)
	}
	return nil
}

// x509OIDs are the key algorithms of the standard library, beside ecPublicKey:
// RSA, DSA, X25519, Ed25519.
var x509OIDs = map[string]bool{"1.2.840.113549.1.1.1": true, "1.2.840.10040.4.1": true, "1.3.101.110": true, "1.3.101.112": true}

// whyNotEC says why the standard library refuses a key on an elliptic curve. A
// point in another form than the usual one is tried in the usual one, so that
// only a point on the curve counts as a key.
func whyNotEC(parameters []asn1.RawValue, bits []byte) (keyErr, err error) {
	if len(parameters) == 0 {
		return errors.New("the key's curve is not named"), nil
	}
	oid, err := objectID(parameters[0])
	if err != nil {
		return errors.New("the key's curve is given by explicit parameters, not by its name"), nil
	}
	curve, ok := curves[oid]
	if !ok {
		return fmt.Errorf("the key's curve %s is unknown", oid), nil
	}
	size := (curve.Params().BitSize + 7) / 8
	switch {
	case len(bits) == 1+size && (bits[0] == 2 || bits[0] == 3):
		if x, _ := elliptic.UnmarshalCompressed(curve, bits); x != nil {
			return errors.New("the key's point is compressed"), nil
		}
	case len(bits) == 1+2*size && (bits[0] == 6 || bits[0] == 7) && bits[0]&1 == bits[2*size]&1:
		if _, err := ecdsa.ParseUncompressedPublicKey(curve, append([]byte{4}, bits[1:]...)); err == nil {
			return errors.New("the key's point is in the hybrid form"), nil
		}
	}
	return nil, errPoint
}
