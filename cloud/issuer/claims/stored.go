// Package claims stores what was issued: in a folder or in DynamoDB.
package claims

import (
	"errors"
	"fmt"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/station/board"
)

// storedClaim is how all back ends write an issuance; the names are those of
// the table's attributes. The first two are its key.
type storedClaim struct {
	Device      string `json:"device-id"`
	Claim       string `json:"claim"`
	Version     int    `json:"version"`
	Fingerprint string `json:"key-fingerprint"`
	Generation  int    `json:"generation"`
	Epoch       int    `json:"epoch"`
	CA          string `json:"ca"`
	Serial      string `json:"serial"`
	NotBefore   string `json:"not-before"` // RFC 3339, UTC, seconds
	NotAfter    string `json:"not-after"`
	Org         string `json:"organization,omitempty"`
	AltName     string `json:"alternative-name,omitempty"`
	Created     string `json:"created"`
	Challenge   string `json:"challenge,omitempty"`
	State       string `json:"state"`
	CAState     string `json:"memo,omitempty"`
	Certificate string `json:"certificate,omitempty"` // PEM
	Chain       string `json:"certificate-chain,omitempty"`
	Activated   string `json:"activated,omitempty"`
	Revoked     string `json:"revoked,omitempty"`
	Reason      string `json:"reason,omitempty"`
}

const claimTime = "2006-01-02T15:04:05Z"

func storeIssuance(i issuer.Issuance) storedClaim {
	c := i.Claim
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(claimTime)
	}
	s := storedClaim{
		Device: c.Device.String(), Claim: c.SortKey(), Version: i.Version, Fingerprint: c.Fingerprint.String(),
		Generation: c.Generation, Epoch: c.Epoch, CA: c.CA, Serial: c.Serial.String(),
		NotBefore: at(c.NotBefore), NotAfter: at(c.NotAfter), Org: c.Org, AltName: c.AltName, Created: at(c.Created), Challenge: c.Challenge,
		State: string(i.State), CAState: i.CAState, Activated: at(i.Activated), Revoked: at(i.Revoked),
	}
	if !i.Revoked.IsZero() {
		s.Reason = i.Reason.String()
	}
	if i.Certificate != nil {
		s.Certificate, s.Chain = string(i.Certificate.LeafPEM()), string(i.Certificate.ChainPEM())
	}
	return s
}

// load reads what is stored, strictly. The error wraps ErrBadClaim.
func (s storedClaim) load() (issuer.Issuance, error) {
	i, err := s.parse()
	if err == nil {
		err = i.Check()
	}
	if err == nil && storeIssuance(i) != s {
		err = errors.New("it is not as it was written")
	}
	if err != nil {
		return issuer.Issuance{}, fmt.Errorf("%w: %.80q/%.100q: %v", issuer.ErrBadClaim, s.Device, s.Claim, err)
	}
	return i, nil
}

func (s storedClaim) parse() (i issuer.Issuance, err error) {
	c := &i.Claim
	if c.Device, err = board.ParseDeviceID(s.Device); err != nil {
		return i, err
	}
	if c.Fingerprint, err = board.ParseFingerprint(s.Fingerprint); err != nil {
		return i, err
	}
	if c.Serial, err = issuer.ParseSerial(s.Serial); err != nil {
		return i, err
	}
	for _, field := range []struct {
		to   *time.Time
		text string
	}{
		{&c.NotBefore, s.NotBefore}, {&c.NotAfter, s.NotAfter}, {&c.Created, s.Created},
		{&i.Activated, s.Activated}, {&i.Revoked, s.Revoked},
	} {
		if field.text == "" {
			continue
		}
		if *field.to, err = time.Parse(claimTime, field.text); err != nil {
			return i, err
		}
	}
	c.Generation, c.Epoch, c.CA, c.Challenge, c.Org, c.AltName = s.Generation, s.Epoch, s.CA, s.Challenge, s.Org, s.AltName
	i.Version, i.State, i.CAState = s.Version, issuer.IssuanceState(s.State), s.CAState
	if s.Reason != "" {
		var ok bool
		if i.Reason, ok = issuer.ParseReason(s.Reason); !ok {
			return i, fmt.Errorf("the reason %.40q", s.Reason)
		}
	}
	if s.Certificate != "" {
		certificate, err := issuer.ParseCertificate([]byte(s.Certificate), []byte(s.Chain))
		if err != nil {
			return i, err
		}
		i.Certificate = &certificate
	}
	return i, nil
}
