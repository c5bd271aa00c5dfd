package board_test

import (
	"crypto/elliptic"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"secretfree/station/board"
)

func TestProof(t *testing.T) {
	id := fixedRecord(t).Device
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		d := newDevice(t, curve)
		for _, hash := range []board.Hash{board.SHA1, board.SHA256} {
			for n := 2; n <= 8; n++ {
				var nonces []string
				for i := range n {
					nonces = append(nonces, fmt.Sprintf("nonce number %d", i))
				}
				if err := d.proof(t, hash, nonces...).Verify(id, d.key(t)); err != nil {
					t.Errorf("%s, %s, %d nonces: %v", curve.Params().Name, hash, n, err)
				}
			}
		}
	}
}

func TestProofRefusals(t *testing.T) {
	id := fixedRecord(t).Device
	d, other := fixedDevice(t), newDevice(t, elliptic.P256())
	rsa, err := board.NewKey(rsaKey(t, 2048, 65537), nil)
	must(t, err)
	const one, two, three = "the first nonce", "the second nonce", "the third nonce"
	var nine []string
	for i := range 9 {
		nine = append(nine, fmt.Sprintf("nonce number %d", i))
	}
	// The form is what a record is held to; the signatures are for Verify
	// alone.
	for name, c := range map[string]struct {
		key    board.Key
		change func(*board.Proof)
		form   bool
		want   string
	}{
		"the zero value":              {change: func(p *board.Proof) { *p = board.Proof{} }, form: true, want: `unknown method ""`},
		"no method":                   {change: func(p *board.Proof) { p.Method = "" }, form: true, want: `unknown method ""`},
		"an unknown method":           {change: func(p *board.Proof) { p.Method = "say-so" }, form: true, want: `unknown method "say-so"`},
		"no hash":                     {change: func(p *board.Proof) { p.Hash = "" }, form: true, want: `unknown hash ""`},
		"an unknown hash":             {change: func(p *board.Proof) { p.Hash = "SHA1" }, form: true, want: `unknown hash "SHA1"`},
		"nothing signed":              {change: func(p *board.Proof) { p.Nonces, p.Signatures = nil, nil }, form: true, want: "0 nonces and 0 signatures, want 2 to 8"},
		"one nonce":                   {change: func(p *board.Proof) { p.Nonces, p.Signatures = p.Nonces[:1], p.Signatures[:1] }, form: true, want: "1 nonces and 1 signatures"},
		"a signature too few":         {change: func(p *board.Proof) { p.Signatures = p.Signatures[:2] }, form: true, want: "3 nonces and 2 signatures"},
		"a nonce too few":             {change: func(p *board.Proof) { p.Nonces = p.Nonces[:2] }, form: true, want: "2 nonces and 3 signatures"},
		"9 nonces":                    {change: func(p *board.Proof) { *p = *d.proof(t, board.SHA1, nine...) }, form: true, want: "9 nonces and 9 signatures"},
		"a short nonce":               {change: func(p *board.Proof) { p.Nonces[1] = []byte("11 bytes...") }, form: true, want: "a nonce of 11 bytes, want 12 to 128"},
		"a long nonce":                {change: func(p *board.Proof) { p.Nonces[2] = make([]byte, 129) }, form: true, want: "a nonce of 129 bytes"},
		"an empty nonce":              {change: func(p *board.Proof) { p.Nonces[0] = nil }, form: true, want: "a nonce of 0 bytes"},
		"the same nonce twice":        {change: func(p *board.Proof) { *p = *d.proof(t, board.SHA1, one, two, one) }, form: true, want: "the same nonce twice"},
		"an empty signature":          {change: func(p *board.Proof) { p.Signatures[0] = nil }, form: true, want: "a signature of 0 bytes"},
		"a long signature":            {change: func(p *board.Proof) { p.Signatures[2] = make([]byte, 1025) }, form: true, want: "a signature of 1025 bytes"},
		"another key":                 {key: other.key(t), want: "signature 1 of 3 is not by this key"},
		"an RSA key":                  {key: rsa, want: "needs an ECDSA key"},
		"the last signed by another":  {change: func(p *board.Proof) { p.Signatures[2] = other.proof(t, board.SHA1, three).Signatures[0] }, want: "signature 3 of 3 is not by this key"},
		"another nonce":               {change: func(p *board.Proof) { p.Nonces[1] = []byte("a nonce of ours") }, want: "signature 2 of 3"},
		"a nonce with a byte more":    {change: func(p *board.Proof) { p.Nonces[1] = append(p.Nonces[1], 0) }, want: "signature 2 of 3"},
		"signatures swapped":          {change: func(p *board.Proof) { slices.Reverse(p.Signatures) }, want: "signature 1 of 3"},
		"one signature for all":       {change: func(p *board.Proof) { p.Signatures[1] = p.Signatures[0] }, want: "signature 2 of 3"},
		"the other hash":              {change: func(p *board.Proof) { p.Hash = board.SHA256 }, want: "signature 1 of 3"},
		"one with the other hash":     {change: func(p *board.Proof) { p.Signatures[1] = d.proof(t, board.SHA256, two).Signatures[0] }, want: "signature 2 of 3"},
		"a signature with a bit more": {change: func(p *board.Proof) { p.Signatures[0][20] ^= 1 }, want: "signature 1 of 3"},
		"a signature cut":             {change: func(p *board.Proof) { p.Signatures[0] = p.Signatures[0][:60] }, want: "signature 1 of 3"},
		"a byte after a signature":    {change: func(p *board.Proof) { p.Signatures[2] = append(p.Signatures[2], 0) }, want: "signature 3 of 3"},
		"a raw signature":             {change: func(p *board.Proof) { p.Signatures[0] = make([]byte, 64) }, want: "signature 1 of 3"},
		"r and s are 0":               {change: func(p *board.Proof) { p.Signatures[0] = []byte{0x30, 6, 2, 1, 0, 2, 1, 0} }, want: "signature 1 of 3"},
	} {
		t.Run(name, func(t *testing.T) {
			p := d.proof(t, board.SHA1, one, two, three)
			if c.change != nil {
				c.change(p)
			}
			key := c.key
			if key == (board.Key{}) {
				key = d.key(t)
			}
			if err := p.Verify(id, key); !errors.Is(err, board.ErrProof) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v with %q", err, board.ErrProof, c.want)
			}
			r := fixedRecord(t)
			r.Proof = p
			if err := r.Check(); (err != nil) != c.form {
				t.Errorf("a record with it: %v", err)
			}
		})
	}
	if err := d.proof(t, board.SHA1, one, two).Verify(id, board.Key{}); !errors.Is(err, board.ErrProof) {
		t.Errorf("no key: %v", err)
	}
}
