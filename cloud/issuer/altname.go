package issuer

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"secretfree/station/board"
)

// devicePlace stands for the device id in Policy.AlternativeName.
const devicePlace = "{device}"

const (
	maxAltName  = 253 // characters, the longest name of a host
	urnScheme   = "urn:"
	tagDNSName  = 2 // of a GeneralName (RFC 5280, 4.2.1.6)
	tagURIName  = 6
	longestHost = 63 // of a label
)

// alternativeName is what a policy's setting says of a device; empty for none.
func (p Policy) alternativeName(device board.DeviceID) string {
	return strings.ReplaceAll(p.AlternativeName, devicePlace, device.String())
}

// checkAlternativeName reports a setting that is no URN and no name of a host,
// or that would give all devices one name.
func (p Policy) checkAlternativeName() error {
	if p.AlternativeName == "" {
		return nil
	}
	if strings.Count(p.AlternativeName, devicePlace) != 1 {
		return errors.New("policy: the alternative name must have {device} in it, once")
	}
	return checkAltName(p.alternativeName(board.DeviceID{1}))
}

func checkAltName(name string) error {
	if len(name) > maxAltName || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("an alternative name of %d characters, want at most %d of ASCII without blanks", len(name), maxAltName)
	}
	if strings.HasPrefix(name, urnScheme) {
		if u, err := url.Parse(name); err != nil || u.String() != name || strings.Count(name, ":") < 2 {
			return fmt.Errorf("the alternative name %.80q is no URN", name)
		}
		return nil
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > longestHost || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("the alternative name %.80q is neither a URN (urn:…) nor the name of a host in lower case", name)
		}
	}
	return nil
}

// hasAltName reports whether a certificate has just the alternative name of its
// claim, or none where the claim has none.
func hasAltName(leaf *x509.Certificate, want string) bool {
	for _, extension := range leaf.Extensions {
		if extension.Id.String() != oidSubjectAltName {
			continue
		}
		tag := tagDNSName
		if strings.HasPrefix(want, urnScheme) {
			tag = tagURIName
		}
		names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(want)}})
		return err == nil && want != "" && string(extension.Value) == string(names)
	}
	return want == ""
}
