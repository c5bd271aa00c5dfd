package uart

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestClassify(t *testing.T) {
	for text, want := range map[string]Heard{
		"": HeardNothing, "hello\r\n": HeardText, "> ": HeardText, "\x1b[31merror\x1b[0m\r\n": HeardText,
		"Gr\xc3\xbc\xc3\x9fe aus dem Labor\r\n": HeardText,
		"\r\ngateway login: ":                   HeardLogin,
		"gateway login: at+test\r\nPassword: ":  HeardLogin,
		"Username:":                             HeardLogin,
		"[12] last login: yesterday, from 10.0.0.1 by the daemon, and the log goes on and on until its very end\r\nheap 1\r\n": HeardText,
		"\x00\xcc": HeardBootLoader, "\x00\xcc\x00\xcc\x00\xcc": HeardBootLoader, "\xcc\x00\xcc\x00\xcc\x00": HeardBootLoader,
		strings.Repeat("\x00", 20): HeardWrongSpeed, strings.Repeat("\xfe\xf0\x80\x00", 8): HeardWrongSpeed,
		"\x00": HeardNoise, "\x93\xa5\xd2": HeardNoise,
		strings.Repeat("\x93\xa5\xd2\xb4\xa9", 12): HeardWrongSpeed,
	} {
		if got := classify([]byte(text)); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

// Noise is not called a speed: that would send somebody to change what is
// right.
func TestClassifyNoise(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const samples = 2000
	wrong := 0
	for i := range samples {
		b := make([]byte, 8+i%1000)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		if h := classify(b); h != HeardNoise && h != HeardText {
			wrong++
		}
	}
	if wrong > samples/100 {
		t.Errorf("%d of %d samples of noise have another name", wrong, samples)
	}
}

// FuzzClassify: any bytes have a name, the error has a sentinel and words, and
// none of it quotes them.
func FuzzClassify(f *testing.F) {
	for _, seed := range []string{"", "login: ", "\x00\xcc\x00\xcc", "\xff\x80\x00", "OK\r\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, heard []byte) {
		before := bytes.Clone(heard)
		h := classify(heard)
		err := &UnknownError{Heard: h}
		if !bytes.Equal(heard, before) || (h == HeardNothing) != (len(heard) == 0) {
			t.Fatalf("%q: %q", heard, h)
		}
		if h != HeardNothing && (err.Error() == (&UnknownError{}).Error() || errors.Is(err, ErrWrongSpeed) == errors.Is(err, ErrNoDialect)) {
			t.Fatalf("%q: %v", h, err)
		}
		if classify(append(before, heard...)) == HeardNothing && len(heard) > 0 {
			t.Fatal("twice as much is nothing")
		}
	})
}
