package uart_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/uart"
)

func TestTranscriptRefusals(t *testing.T) {
	const good = "transcript: 1\ndialect: ti-at\nexpect: passed\n\n0.000000 > \"at\\r\"\n0.001204 < \"\\x00\\\"\\\\ \"\n"
	if _, err := uart.ParseTranscript([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ from, to, want string }{
		"no version":             {"transcript: 1\n", "", "line 1"},
		"another version":        {"transcript: 1", "transcript: 2", "line 1"},
		"unknown key":            {"expect: passed", "expects: passed", "line 3"},
		"key twice":              {"expect: passed", "dialect: ti-at", "line 3"},
		"keys in another order":  {"dialect: ti-at\nexpect: passed", "expect: passed\ndialect: ti-at", "line 2"},
		"key without value":      {"expect: passed", "expect: ", "line 3"},
		"no time":                {"0.000000 >", ">", "line 5"},
		"five digits":            {"0.001204", "0.00120", "line 6"},
		"time runs back":         {"0.000000", "0.100000", "line 6"},
		"unknown direction":      {"0.000000 >", "0.000000 =", "line 5"},
		"nothing in the quotes":  {`"at\r"`, `""`, "line 5"},
		"no quotes":              {`"at\r"`, `at\r`, "line 5"},
		"unknown escape":         {`at\r`, `at\q`, "line 5"},
		"half an escape":         {`at\r`, `at\`, "line 5"},
		"hex that is none":       {`\x00`, `\x0g`, "line 6"},
		"escape without need":    {`at\r`, `\x61t\r`, "line 5"},
		"upper case hex":         {`\x00`, `\x0A`, "line 6"},
		"line ends of two bytes": {"passed\n", "passed\r\n", "line 3 ends in CR LF"},
		"a file of the other OS": {good, strings.ReplaceAll(good, "\n", "\r\n"), "line 1 ends in CR LF"},
		"no end of line":         {"\\ \"\n", "\\ \"", "line 6"},
		"cut":                    {"\\ \"\n", "", "line 6"},
		"too large":              {"at", strings.Repeat("x", uart.MaxTranscript), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, c.from, c.to, 1)
			if text == good {
				t.Fatal("the case changes nothing")
			}
			_, err := uart.ParseTranscript([]byte(text))
			if !errors.Is(err, uart.ErrTranscript) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v with %q", err, uart.ErrTranscript, c.want)
			}
		})
	}
}

func FuzzTranscript(f *testing.F) {
	paths, _ := filepath.Glob("../fixtures/transcripts/*.uart")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		transcript, err := uart.ParseTranscript(text)
		if err != nil {
			return
		}
		again, err := transcript.Encode()
		if err != nil || !bytes.Equal(again, text) {
			t.Errorf("parsed, but encodes to %q (%v)", again, err)
		}
	})
}
