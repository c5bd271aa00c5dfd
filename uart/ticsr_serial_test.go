package uart

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// Whatever single digit of a serial number is another one, the digits run
// together are other text, and so is every form that the second reading takes.
func TestJoinedDigits(t *testing.T) {
	const digits = "0123456789abcdef"
	for range 400 {
		var device [16]byte
		for i := range device {
			device[i] = byte(rand.IntN(256))
			if rand.IntN(2) == 0 {
				device[i] &= 0x0f
			}
		}
		text := hex.EncodeToString(device[:])
		joined := ""
		for i := range device {
			joined += fmt.Sprintf("%x", device[i])
		}
		if joinedDigits(device) != joined {
			t.Fatalf("%s: %s, want %s", text, joinedDigits(device), joined)
		}
		for at := range text {
			for _, digit := range digits {
				if byte(digit) == text[at] {
					continue
				}
				var other [16]byte
				if _, err := hex.Decode(other[:], []byte(text[:at]+string(digit)+text[at+1:])); err != nil {
					t.Fatal(err)
				}
				for _, shown := range []string{text, joined} {
					if shown == joinedDigits(other) || shown == hex.EncodeToString(other[:]) {
						t.Fatalf("%s shown as %s goes for %x", text, shown, other)
					}
				}
			}
		}
	}
}

func TestNameForm(t *testing.T) {
	for _, c := range []struct {
		device, name, want string
		other              bool
	}{
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a0b", "cut-short", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a0bc0ffeeabcdef1011121314", "joined", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a00bc0ffee0a0b0c0d0e0f1011121314", "padded", false},
		{"010bc0ffee0a0b0c0d0e0f1011121314", "1", "cut-short", false},
		{"000bc0ffee0a0b0c0d0e0f1011121314", "0", "cut-short", false},
		{"a01bc0ffee1a1b1c1d1e1f1011121304", "a01bc0ffee1a1b1c1d1e1f101112134", "joined", false}, // and cut short
		{"a01bc0ffee1a1b1c1d1e1f1011121314", "a01bc0ffee1a1b1c1d1e1f1011121314", "padded", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a0", "", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a00b", "", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "A0B", "cut-short", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "", "", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "A00BC0FFEE0A0B0C0D0E0F1011121314", "padded", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "device a00bc0ffee0a0b0c0d0e0f1011121314", "padded", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a1b", "", true},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "a00bc0ffee0a0b0c0d0e0f1011121315", "", true},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "cc3220", "", false},
		{"a00bc0ffee0a0b0c0d0e0f1011121314", "none", "", false},
	} {
		device, err := hex.DecodeString(c.device)
		if err != nil {
			t.Fatal(err)
		}
		got, other := nameForm([16]byte(device), c.name)
		if other != c.other {
			t.Errorf("%s under the name %q: of another serial number: %t", c.device, c.name, other)
		}
		if got != c.want {
			t.Errorf("%s under the name %q: %q, want %q", c.device, c.name, got, strings.TrimSpace(c.want))
		}
	}
}
