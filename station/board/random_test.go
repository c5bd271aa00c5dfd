package board_test

import (
	"bytes"
	"crypto/elliptic"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"secretfree/station/board"
)

// random makes valid values, small and large.
type random struct {
	*rand.Rand
	t      testing.TB
	keys   []board.Key
	signer device
}

func newRandom(t testing.TB) *random {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := &random{Rand: rand.New(rand.NewPCG(seed, 0)), t: t, signer: fixedDevice(t)}
	for _, d := range []device{newDevice(t, elliptic.P256()), newDevice(t, elliptic.P256()), newDevice(t, elliptic.P384())} {
		r.keys = append(r.keys, d.key(t))
	}
	for _, bits := range []int{2048, 4096, 8192} {
		key, err := board.NewKey(rsaKey(t, bits, 65537), nil)
		must(t, err)
		r.keys = append(r.keys, key)
	}
	return r
}

func (r *random) bytes(min, max int) []byte {
	b := make([]byte, min+r.IntN(max-min+1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// text is of the characters of an alphabet.
func (r *random) text(min, max int, alphabet string) string {
	b := r.bytes(min, max)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	return string(b)
}

func (r *random) device() (id board.DeviceID) {
	for !id.Valid() {
		copy(id[:], r.bytes(16, 16))
	}
	return id
}

func (r *random) record() board.Record {
	const small = "abcdefghijklmnopqrstuvwxyz0123456789"
	var printable strings.Builder
	for c := byte(' '); c <= '~'; c++ {
		printable.WriteByte(c)
	}
	last := time.Date(9999, 12, 31, 23, 59, 59, 999_000_000, time.UTC).UnixMilli()
	out := board.Record{
		SKU: r.text(1, 1, small) + r.text(0, 62, small+"-"), Station: r.text(1, 1, small) + r.text(0, 62, small+"-"),
		Device: r.device(), Key: r.keys[r.IntN(len(r.keys))], ReadAt: time.UnixMilli(r.Int64N(last + 1)).UTC(),
		Generation: 1 + r.IntN(math.MaxInt32), Facts: map[string]string{},
	}
	for range r.IntN(17) {
		out.Facts[r.text(1, 32, small+".-")] = r.text(0, 256, printable.String())
	}
	switch r.IntN(5) {
	case 0: // none
	case 1:
		out.Proof = r.signer.requestProof(r.t, out.Device, r.text(12, 64, small))
	case 2:
		out.Proof = r.signer.reportProof(r.t, out.Device, r.text(12, 128, small))
	default:
		out.Proof = &board.Proof{Method: board.ProofSignMsg, Hash: []board.Hash{board.SHA1, board.SHA256}[r.IntN(2)]}
		for range 2 + r.IntN(3) {
			out.Proof.Nonces = append(out.Proof.Nonces, r.bytes(12, 128)) // two alike are not to be expected
			out.Proof.Signatures = append(out.Proof.Signatures, r.bytes(1, 200))
		}
	}
	return out
}

// Any valid value comes back from its text as it was, and there is one text
// only.
func TestRoundTrip(t *testing.T) {
	r := newRandom(t)
	for range 500 {
		id := r.device()
		if got, err := board.ParseDeviceID(id.String()); err != nil || got != id {
			t.Fatalf("%s: got %s, %v", id, got, err)
		}
		want := r.record()
		data, err := want.Encode()
		if err != nil {
			t.Fatalf("%+v: %v", want, err)
		}
		got, err := board.ParseRecord(data)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v, want %+v\n%s", got, err, want, data)
		}
		s := newStation(t, want.Origin(), byte(r.IntN(4)))
		sealed := seal(t, want, s)
		opened, err := board.OpenEnvelope(sealed.Envelope(), s)
		if err != nil || !reflect.DeepEqual(opened, sealed) {
			t.Fatalf("got %+v, %v, want %+v", opened, err, sealed)
		}
	}
}

// A changed bit is seen, in whichever byte.
func TestEveryByteCounts(t *testing.T) {
	s := fixedStation(t)
	sealed := seal(t, fixedRecord(t), s)
	for i := range sealed.Envelope() {
		text := bytes.Clone(sealed.Envelope())
		text[i] ^= 1 << (i % 8)
		if _, err := board.OpenEnvelope(text, s); err == nil {
			t.Errorf("the envelope opens with byte %d changed from %q to %q", i, sealed.Envelope()[i], text[i])
		}
	}
}
