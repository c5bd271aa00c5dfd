package issuer

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"secretfree/station/board"
)

// A challenge is text of challengeLength characters of a PrintableString, so
// that it fits into any field of a subject (64 in X.520):
//
//	"sfc1." base32( until when, 4 bytes of Unix seconds | 8 random bytes | 16 bytes of HMAC-SHA-256 )
//
// The HMAC is over what stands before it, and the SKU. Nobody has to remember a
// challenge to know it again.
const (
	challengePrefix = "sfc1."
	challengeBody   = 12
	challengeMAC    = 16
	challengeLength = len(challengePrefix) + ((challengeBody+challengeMAC)*8+4)/5

	maxChallenge = 64 // of stored ones
)

var challengeText = base32.StdEncoding.WithPadding(base32.NoPadding)

// DefaultChallengeLife is how long a device has to answer.
const DefaultChallengeLife = 5 * time.Minute

// Challenges makes challenges, and knows its own again. It may be used at once,
// and by any number of issuers that share its key. Challenges keeps nothing;
// that each opens one epoch at the most is seen to by the claims.
type Challenges struct {
	sku  string
	key  []byte
	life time.Duration
}

// NewChallenges takes a secret key of 32 bytes. It protects no certificate by
// itself: whoever knows it can only have a device answer ahead of time.
func NewChallenges(sku string, key []byte, life time.Duration) (*Challenges, error) {
	if err := board.CheckName(sku); err != nil {
		return nil, fmt.Errorf("challenges: the SKU: %w", err)
	}
	if len(key) != sha256.Size {
		return nil, fmt.Errorf("challenges: a key of %d bytes, want %d", len(key), sha256.Size)
	}
	if life < time.Second || life > 24*time.Hour {
		return nil, fmt.Errorf("challenges: a life of %v, want 1s to 24h", life)
	}
	return &Challenges{sku: sku, key: append([]byte(nil), key...), life: life}, nil
}

// New returns a challenge, and until when it can be answered.
func (c *Challenges) New(now time.Time) (text string, until time.Time) {
	until = now.Add(c.life).Truncate(time.Second)
	raw := binary.BigEndian.AppendUint32(nil, uint32(until.Unix()))
	raw = append(raw, make([]byte, challengeBody-len(raw))...)
	_, _ = rand.Read(raw[4:]) // never fails (crypto/rand)
	raw = append(raw, c.mac(raw)...)
	return challengePrefix + challengeText.EncodeToString(raw), until.UTC()
}

func (c *Challenges) mac(body []byte) []byte {
	h := hmac.New(sha256.New, c.key)
	h.Write([]byte("secretfree challenge v1\x00" + c.sku + "\x00"))
	h.Write(body)
	return h.Sum(nil)[:challengeMAC]
}

// errExpired tells an answer that came too late from one to nothing.
var errExpired = errors.New("the challenge has expired")

// check is nil for a challenge that New made and that has not expired.
func (c *Challenges) check(text string, now time.Time) error {
	if c == nil {
		return errors.New("this issuer makes no challenges")
	}
	if len(text) != challengeLength || text[:len(challengePrefix)] != challengePrefix {
		return errors.New("it is not a challenge")
	}
	raw, err := challengeText.DecodeString(text[len(challengePrefix):])
	if err != nil || challengeText.EncodeToString(raw) != text[len(challengePrefix):] || len(raw) != challengeBody+challengeMAC || !hmac.Equal(raw[challengeBody:], c.mac(raw[:challengeBody])) {
		return errors.New("the challenge is not one of this issuer")
	}
	until := time.Unix(int64(binary.BigEndian.Uint32(raw)), 0)
	if !now.Before(until) {
		return errExpired
	}
	if until.After(now.Add(24 * time.Hour)) { // made under a longer life, or another clock
		return errors.New("the challenge is from the future")
	}
	return nil
}
