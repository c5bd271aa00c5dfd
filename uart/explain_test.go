package uart

import (
	"net"
	"slices"
	"strings"
	"testing"
)

// explaining returns a line that has received text, and what it reports.
func explaining(t *testing.T, text string) (*Line, *[]Piece) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() {
		ours.Close()
		theirs.Close()
	})
	l, pieces := NewLine(ours, LineOptions{}), new([]Piece)
	l.Explain(func(p Piece) { *pieces = append(*pieces, p) })
	if err := l.take([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return l, pieces
}

// Places count all bytes that have arrived, whatever Mark and Forget drop.
func TestConsumed(t *testing.T) {
	l, _ := explaining(t, "\r\none\r\ntwo")
	if line, ok, err := l.nextLine(); line != "one" || !ok || err != nil {
		t.Fatalf("%q, %v, %v", line, ok, err)
	}
	if l.lineAt != 2 || l.Consumed() != 5 || l.Received() != 10 {
		t.Errorf("line at %d, consumed %d, received %d; want 2, 5, 10", l.lineAt, l.Consumed(), l.Received())
	}
	l.Mark()
	if l.Consumed() != 5 {
		t.Errorf("after Mark: consumed %d, want 5", l.Consumed())
	}
	l.Forget()
	if err := l.take([]byte("three")); err != nil {
		t.Fatal(err)
	}
	if l.Consumed() != 10 || l.Received() != 15 {
		t.Errorf("after Forget: consumed %d, received %d; want 10, 15", l.Consumed(), l.Received())
	}
}

// What comes after a private key is not counted, and nothing of it is reported.
func TestConsumedAfterLeak(t *testing.T) {
	l, _ := explaining(t, "one\r\n")
	if err := l.take([]byte(leakWords)); err == nil {
		t.Fatal("a private key was taken")
	}
	if err := l.take([]byte("more")); err != nil {
		t.Fatal(err)
	}
	if l.Consumed() != l.Received() || l.Received() != 5 {
		t.Errorf("consumed %d, received %d; want 5, 5", l.Consumed(), l.Received())
	}
}

func TestExplainHeard(t *testing.T) {
	const text = "AT Commands Example Ver: 1.1.2\r\n\r\n\t CHIP: 0x31\r\nEnter AT Command:at+get\r\nother\r\n"
	l, pieces := explaining(t, "gone")
	l.Forget()
	if err := l.take([]byte(text)); err != nil {
		t.Fatal(err)
	}
	l.explainHeard(startMeaning)
	var got []string
	for _, p := range *pieces {
		got = append(got, text[p.At-4:p.At-4+p.Len]+" = "+p.Meaning)
	}
	want := []string{"AT Commands Example Ver: 1.1.2 = banner: fact build", "\t CHIP: 0x31 = banner, skipped", "Enter AT Command: = prompt"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A serial number with one damaged byte: the place is that byte, or, where a
// digit is missing, the place of the digit.
func TestStops(t *testing.T) {
	const udid = "0x4d,0x1f,0x8e,0x27,0xb3,0xc0,0x5a,0x9e,0x61,0xf2,0xd4,0x77,0x88,0xaa,0xbb,0xc"
	const serial = "4d 1f 8e 27 b3 c0 5a 9e 61 f2 d4 77 88 aa bb cc"
	for i := range udid {
		damaged := udid[:i] + "!" + udid[i+1:]
		if _, ok := parseUDID(damaged); ok {
			t.Errorf("%q was taken", damaged)
		}
		if at, want := udidStop(damaged); at != i || want == "" {
			t.Errorf("%q: stops at %d (%s), want %d", damaged, at, want, i)
		}
	}
	for i, c := range serial {
		damaged := serial[:i] + "!" + serial[i+1:]
		if at, want := serialStop(damaged); at != i || want == "" {
			t.Errorf("%q for %q: stops at %d (%s), want %d", damaged, c, at, want, i)
		}
	}
	for _, c := range []struct {
		stop     func(string) (int, string)
		text, at string // up to the place
	}{
		{udidStop, udid + ",0x1", udid},
		{udidStop, "0x4d,0x1f", "0x4d,0x1f"},
		{udidStop, "0x4dd,0x1f", "0x4d"},
		{serialStop, serial + " dd", serial + " "},
		{serialStop, "4d 1f", "4d 1f"},
		{serialStop, "4d 1 8e", "4d 1"},
		{serialStop, "0x4d, 0x1, 0xg", "0x4d, 0x1, 0x"},
		{codedStop, "1,4,AB!D", "1,4,AB"},
		{codedStop, "1,5,ABCD", "1,"},
		{codedStop, "2,4,ABCD", ""},
	} {
		if at, want := c.stop(c.text); at != len(c.at) || want == "" {
			t.Errorf("%q: stops at %d (%s), want %d", c.text, at, want, len(c.at))
		}
	}
}

// A checksum names the one byte that is wrong.
func TestSumStop(t *testing.T) {
	const good = "secretfree 1 ready b4530a006b59d14b9805bfc901de1358 6eb3188b"
	if _, err := openAnswer(good); err != nil {
		t.Fatal(err)
	}
	for i := len("secretfree 1 "); i < len(good); i++ {
		if good[i] == ' ' {
			continue
		}
		for _, c := range "0f!" {
			damaged := good[:i] + string(c) + good[i+1:]
			if damaged == good {
				continue
			}
			if at, want := sumStop("\t" + damaged); at != i+1 || want == "" {
				t.Errorf("%q: named is byte %d (%s), want %d", damaged, at, want, i+1)
			}
		}
	}
	two := strings.Replace(good, "b4530a", "b45f0f", 1)
	if at, _ := sumStop(two); at != 0 {
		t.Errorf("two bytes: named is byte %d, want the beginning", at)
	}
}

func FuzzStops(f *testing.F) {
	f.Add("0x4d,0x1f")
	f.Add("4d 1f 8e 27 b3 c0 5a 9e 61 f2 d4 77 88 aa bb cc")
	f.Add("1,4,AB==")
	f.Add(" x \u023a\u023a")
	f.Add("secretfree 1 ready b4530a006b59d14b9805bfc901de1358 6eb3188b")
	f.Fuzz(func(t *testing.T, value string) {
		if len(value) > 256 {
			return
		}
		for name, stop := range map[string]func(string) (int, string){"udid": udidStop, "serial": serialStop, "coded": codedStop, "sum": sumStop} {
			if at, want := stop(value); at < 0 || at > len(value) || want == "" {
				t.Errorf("%s of %q: %d, %q", name, value, at, want)
			}
		}
		for _, at := range serialBytes(value) {
			if at >= len(value) || !isHex(value[at]|0x20) {
				t.Errorf("%q: byte at %d", value, at)
			}
		}
	})
}
